"""Operations: submitting to a cluster, retraining, schedules, checks."""
