"""One self-contained HTML page a job, drawn from plain data; knows no spec classes and no cluster."""
