-- Remove everything the first migration made, data included.
DO $$
DECLARE
  f regprocedure;
BEGIN
  FOR f IN SELECT oid::regprocedure FROM pg_proc
    WHERE pronamespace = current_schema()::regnamespace AND proname LIKE 'ops\_%'
  LOOP
    EXECUTE format('DROP FUNCTION %s CASCADE', f);
  END LOOP;
END $$;
DROP SEQUENCE ops_fence_seq;
DROP TABLE monitoring_alerts, deployment_logs, deployments, infrastructure, applications, api_keys, users, jobs,
  processes, ticks, ledger_state, encryption_keys, login_limits, audit_logs, audit_seals;
