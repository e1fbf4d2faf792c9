-- Least privilege. Nothing here is for everybody: who migrates owns it, and grants what a role needs.

-- Give a role what it needs and no more: `app` runs the platform, `read` reads reports, `enqueue` may only enqueue, `watch`
-- may put tables of its own under audit.
CREATE FUNCTION ops_grant(p_role name, p_kind text) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  home text := (SELECT nspname FROM pg_namespace WHERE oid = (SELECT relnamespace FROM pg_class WHERE oid = 'jobs'::regclass));
  t record;
BEGIN
  EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', home, p_role);
  IF p_kind = 'enqueue' THEN
    -- What `ops_enqueue` writes and looks at: no state, no lease, and nothing of what others have asked for.
    EXECUTE format('GRANT INSERT (id, task, queue, args, kwargs, context, priority, idempotent, unique_key, unique_while,
      lock_key, max_attempts, max_rescues, timeout_seconds, lease_seconds, backoff_seconds, run_at, expires_at, ring_at),
      SELECT (id, state, attempt, unique_key, unique_while) ON jobs TO %I', p_role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s, ops_audit_context() TO %I',
      (SELECT oid::regprocedure FROM pg_proc WHERE proname = 'ops_enqueue' AND pronamespace = home::regnamespace), p_role);
    RETURN;
  ELSIF p_kind = 'watch' THEN
    EXECUTE (SELECT format('GRANT EXECUTE ON FUNCTION %s TO %I', string_agg(oid::regprocedure::text, ', '), p_role)
      FROM pg_proc WHERE pronamespace = home::regnamespace AND proname IN ('ops_audit_watch', 'ops_audit_unwatch',
        'ops_audit_rows', 'ops_audit_keys', 'ops_audit_secret', 'ops_audit_numbers'));
    RETURN;
  ELSIF p_kind NOT IN ('app', 'read') THEN
    RAISE EXCEPTION 'unknown kind of role %, known are: app, read, enqueue, watch', p_kind;
  END IF;
  -- `read` sees reports, never a secret, nor what the audit trail hides, nor what a job is given and held by.
  FOR t IN SELECT c.relname AS name FROM pg_class c
    WHERE c.relnamespace = home::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
      AND c.relname IN ('users', 'api_keys', 'infrastructure', 'applications', 'deployments', 'deployment_logs',
        'monitoring_alerts', 'jobs', 'processes', 'ticks', 'ledger_state', 'encryption_keys', 'login_limits',
        'audit_logs', 'audit_seals',
        'ops_alembic_version')
  LOOP
    IF p_kind = 'read' THEN
      EXECUTE (SELECT format('GRANT SELECT (%s) ON %I TO %I', string_agg(quote_ident(attname), ', '), t.name, p_role)
        FROM pg_attribute WHERE attrelid = format('%I', t.name)::regclass AND attnum > 0 AND NOT attisdropped
          AND attname NOT IN ('hashed_password', 'encrypted_value', 'encrypted_settings', 'check_value', 'settings',
            'command', 'working_directory', 'health_check_url', 'configuration', 'args', 'kwargs', 'result',
            'lease_token', 'done_token'));
    ELSIF t.name IN ('audit_logs', 'ledger_state', 'ops_alembic_version') THEN
      EXECUTE format('GRANT SELECT ON %I TO %I', t.name, p_role);
    ELSIF t.name = 'audit_seals' THEN
      EXECUTE format('GRANT SELECT, INSERT ON %I TO %I', t.name, p_role);
    ELSE
      EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO %I', t.name, p_role);
    END IF;
  END LOOP;
  IF p_kind = 'app' THEN
    EXECUTE format('GRANT USAGE ON SEQUENCE ops_fence_seq TO %I', p_role);
    EXECUTE (SELECT format('GRANT EXECUTE ON FUNCTION %s TO %I', string_agg(oid::regprocedure::text, ', '), p_role)
      FROM pg_proc WHERE pronamespace = home::regnamespace AND proname LIKE 'ops\_%'
        -- A trigger's function runs without a right to it; with one it could be put on a table of the role's own.
        AND prorettype <> 'trigger'::regtype AND proname NOT IN ('ops_grant', 'ops_audit_watch', 'ops_audit_unwatch', 'ops_audit_keys', 'ops_audit_secret',
          'ops_audit_numbers'));
  END IF;
END $$;

DO $$
BEGIN
  EXECUTE (SELECT format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', string_agg(oid::regprocedure::text, ', '))
    FROM pg_proc WHERE pronamespace = current_schema()::regnamespace AND proname LIKE 'ops\_%');
END $$;
