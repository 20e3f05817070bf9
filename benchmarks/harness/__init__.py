"""The harness that every benchmark runs on: it checks variants against the truth, times them side by side and writes
down what came out, on which machine. It knows no op and no model."""
