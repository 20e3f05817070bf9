"""What matters in a system: whole runs that differ in a setting each, scored and drawn."""
