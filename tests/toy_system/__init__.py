"""A system from outside fastvtp, in miniature: `docs/extending.md` walks through it."""
