"""Measures a machine's ceilings by themselves: how fast it copies memory and multiplies matrices.

    python -m benchmarks.harness.ceilings --json ceilings.json

Every floor in a table of results refers to these two rates.
"""

from collections.abc import Sequence

from .command import command_line, given_options
from .environment import environment
from .record import write_json
from .running import measured_environment, options_timer


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the ceilings, print them, and write them with the environment where --json says."""
    given = command_line(__doc__).parse_args(arguments)
    options = given_options(given)
    if given.json:
        # There at once, so that a run which is stopped has said where it ran.
        write_json(given.json, [], {**environment(given.device), "smoke": given.smoke})
    found, ceilings = measured_environment(options, options_timer(options))
    if given.json:
        write_json(given.json, [], found)
    print(f"{found['device']}: copy {ceilings.bytes_per_s / 1e12:.3f} TB/s, {ceilings.flops_per_s / 1e12:.1f} TFLOP/s")


if __name__ == "__main__":
    main()
