-- Remove the hosts and what is known of them.
DROP TRIGGER ops_job_moved_hosts ON jobs;
DROP FUNCTION ops_job_moved_hosts();
-- squawk-ignore ban-drop-table
DROP TABLE deployment_hosts, hosts;
