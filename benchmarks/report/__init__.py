"""The report turns the committed results into README.md, docs/performance.md and plots, and tells one commit's speed
from another's."""
