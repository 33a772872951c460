"""The sections of the report page; each module gathers the values that its template shows."""
