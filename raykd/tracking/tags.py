"""Names in MLflow that a command writes, and that its report or a command that continues it reads."""

GROUPS = "groups.json"  # artifact of a command's run: the rows that depend on each other


class Tag:
    """Tags of runs."""

    ROLE = "raykd.role"  # experiment (a command's own), teacher, ensemble, baseline, student, trial, superseded
    GROUP = "raykd.group"  # what a run is averaged with: trainings that differ only in the seed
    ARM = "raykd.arm"  # of a sweep's run
    CONTROL = "raykd.control"  # whether that arm is a control, "true" or "false"
    STATE = "raykd.state"  # how a training ended: finished, failed, pruned
    FAILURE = "raykd.failure"  # why it failed
    FINGERPRINT = "raykd.fingerprint"  # of the run's training
    FOLDS = "raykd.folds"  # of a teacher, if there are several
    SAME_TRAINING = "raykd.same_training"  # the teacher that is the same training as this baseline
    REUSED = "raykd.reused"  # "true" if the training was found in the store
    LOGITS = "raykd.logits"  # the logits that a teacher's or the ensemble's run scores
    DTYPE = "raykd.dtype"  # of a training's forward passes
    AT_CHANCE = "raykd.at_chance"  # "true" or "false": of a model on test, of a trial on validation
    IDENTITY = "raykd.identity"  # a hash of all that a complete run says

    # Of a command's own run.
    COMMAND = "raykd.command"
    CONFIG = "raykd.config"  # the fingerprint of its config
    FOLDER = "raykd.folder"  # its folder, which no other command uses at the same time
    VERSION = "raykd.version"
    TASK = "raykd.task"  # its type
    PRIMARY_METRIC = "raykd.headline"
    PERCENT = "raykd.percent"  # whether that metric is shown in percent, "true" or "false"
    SHARE = "raykd.share"  # whether it is a share of the rows
    LOGITS_MODE = "raykd.logits_mode"  # how its trainings get the teachers' logits: stored or live
    GRADED_ROWS = "raykd.graded_rows"  # whether each row has a score of its own
    METRIC = "raykd.metric"  # by which a sweep chooses
    ALGORITHM = "raykd.algorithm"  # of its search
    CHANCE = "raykd.chance."  # this and a split's name: the score at chance; then "." and a name: another metric's
    LINKS = "raykd.linked."  # this and a number: the runs of earlier commands that it reuses
    SIZE = "raykd.search_size"  # how much a sweep is to try and to train
    SCORED = "raykd.scored_size"  # how much that was when it was scored on test, or when it was extended after that
    VERSIONS = "raykd.versions"  # of raykd and of what decides the numbers, a line for each that took part
    EARLIER = "raykd.earlier_commands"  # the command lines that the last one continued
    EXTENDED = "raykd.extended"  # how often it was continued to try or train more after it had been scored on test
    DATA_NOTES = "raykd.data_notes"  # what is doubtful about its data, a line each
