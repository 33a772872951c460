"""The figures of the report page, drawn with matplotlib."""
