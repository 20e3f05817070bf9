"""Where bytes lie: local files, object stores, tars and parquet files, by location."""
