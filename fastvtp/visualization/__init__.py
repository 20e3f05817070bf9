"""Pictures and pages: training curves, reconstructions, retrieval galleries. What they show is handed in."""
