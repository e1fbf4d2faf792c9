DROP INDEX ix_jobs_due;
DROP TABLE counter_position;
DROP TABLE counters;
