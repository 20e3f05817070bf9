import pytest

from fastvtp.ablation.studies import Run
from fastvtp.errors import UserError
from fastvtp.systems.simvtp.ablation import (
    QUICK,
    SimVTPScale,
    base_config,
    plan_runs,
)


@pytest.fixture(scope="module")
def base():
    return base_config("fastvtp", ["steps=7"], quick=False)


def test_all_studies_share_the_base_run_and_each_run_comes_once(base):
    runs = plan_runs("all", base.model, SimVTPScale())
    names = [run.name for run in runs]
    assert len(names) == len(set(names)) == 20
    assert names[:4] == ["base", "base, seed +1", "base, seed +2", "untrained"]
    # the middle of the grid is the base run
    assert sum(name.startswith("text ") for name in names) == 8
    for study, count in (("masks", 12), ("objectives", 8), ("modalities", 7), ("data", 6)):
        assert len(plan_runs(study, base.model, SimVTPScale())) == count
    with pytest.raises(UserError, match="did you mean 'masks'"):
        plan_runs("mask", base.model, SimVTPScale())


def test_runs_differ_from_the_base_in_what_they_vary_alone(base):
    configs = {run.name: run.config(base) for run in plan_runs("all", base.model, SimVTPScale())}
    assert configs["base"] == base
    assert {config.steps for name, config in configs.items() if name != "untrained"} == {7}
    assert {name for name, config in configs.items() if config.seed != base.seed} == {"base, seed +1", "base, seed +2"}
    cell = configs["text 0.15, video 0.9"].model
    assert (cell.text_mask_ratio, cell.video_mask_ratio, cell.width) == (0.15, 0.9, base.model.width)
    weights = {
        name: [getattr(configs[name].model, f"{loss}_weight") for loss in ("pixel", "word", "contrastive", "matching")]
        for name in ("without VTC", "without VTM", "reconstruction only", "contrast only")
    }
    assert weights == {
        "without VTC": [1, 1, 0, 1],
        "without VTM": [1, 1, 1, 0],
        "reconstruction only": [1, 1, 0, 0],
        "contrast only": [0, 0, 1, 0],
    }
    video = configs["video alone (VideoMAE)"]
    assert video.task == "pretrain_videomae"
    assert (video.model.width, video.model.video_mask_ratio) == (base.model.width, base.model.video_mask_ratio)


def test_settings_apply_to_the_quick_base_too():
    config = base_config("official", ["steps=2"], quick=True)
    assert (config.steps, config.model.width, config.model.projection_dim) == (2, 48, None)
    assert Run("base", share=QUICK.shares[0]).config(config) == config  # which clips it sees is the caller's affair
