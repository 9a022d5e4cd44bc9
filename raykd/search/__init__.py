"""The sweep: which way of distilling gives the best student. `raykd.search.sweep` is its driver."""
