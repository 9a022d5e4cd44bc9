"""Names in a command's MLflow run that its report reads, or a command that continues it."""

SIZE = "raykd.search_size"  # tag: how much a sweep is to try and to train
SCORED = "raykd.scored_size"  # tag: how much that was when it was scored on test, or when it was extended after that
VERSIONS = "raykd.versions"  # tag: of raykd and of what decides the numbers, a line for each that took part
EARLIER = "raykd.earlier_commands"  # tag: the command lines that the last one continued
EXTENDED = "raykd.extended"  # tag: how often it was continued to try or train more after it had been scored on test
DATA_NOTES = "raykd.data_notes"  # tag: what is doubtful about its data, a line each
GROUPS = "groups.json"  # artifact: the rows that depend on each other
