"""Learning-rate schedules. One file per schedule; the file's name is the schedule's id."""
