"""Names in a command's MLflow run that its report reads."""

CONFIG = "raykd.config"  # tag: the fingerprint of its settings
VERSIONS = "raykd.versions"  # tag: of raykd and of what decides the numbers
EARLIER = "raykd.earlier_commands"  # tag: the command lines that the last one continued
EXTENDED = "raykd.extended"  # tag: how often it was continued with other settings after it had been scored on test
DATA = "raykd.data_notes"  # tag: what is doubtful about its data, a line each
GROUPS = "groups.json"  # artifact: the rows that depend on each other
