"""The sections of the page: each gathers what its template shows."""
