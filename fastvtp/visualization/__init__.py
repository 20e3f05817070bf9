"""Pictures and pages, from arrays and reports alone."""
