-- A ledger that is paused starts nothing: because somebody asked for it, or because the database came back from a
-- backup and has forgotten what it started since.

INSERT INTO ledger_state (server, timeline, server_started_at)
SELECT system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8), pg_postmaster_start_time()
FROM pg_control_system();

-- Compare the server with the one that was here at its last start. Another system: a dump was restored into it. Another
-- timeline: the server was recovered to a point in time, or a standby took over, which may have forgotten as well.
CREATE FUNCTION ops_look_at_server() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
  known ledger_state;
  system bigint := (SELECT system_identifier FROM pg_control_system());
  line text := left(pg_walfile_name(pg_current_wal_lsn()), 8);
  why text;
BEGIN
  SELECT * INTO known FROM ledger_state FOR UPDATE;
  IF known.server_started_at IS NOT DISTINCT FROM pg_postmaster_start_time() THEN
    RETURN;  -- somebody else has looked in the meantime
  END IF;
  why := CASE WHEN known.server <> system THEN 'this database was restored into another server'
    WHEN known.timeline <> line AND NOT known.trusts_failover
      THEN 'this server was recovered from a backup, or a standby took over' END;
  UPDATE ledger_state SET server = system, timeline = line, server_started_at = pg_postmaster_start_time(),
    paused_at = CASE WHEN why IS NULL THEN paused_at ELSE clock_timestamp() END,
    paused_because = CASE WHEN why IS NULL THEN paused_because ELSE 'restored' END,
    reason = coalesce(why, reason);
  IF why IS NOT NULL THEN
    PERFORM ops_audit('ledger.paused', 'ledger', NULL, NULL, jsonb_build_object('because', 'restored', 'reason', why,
      'server', jsonb_build_array(known.server, system), 'timeline', jsonb_build_array(known.timeline, line)),
      '{"actor_type": "system", "actor": "system"}');
  END IF;
END $$;

-- NULL, or why nothing is to be started: `asked`, `restored`. Looks at the server once after each of its starts.
CREATE FUNCTION ops_paused() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
  s ledger_state;
BEGIN
  SELECT * INTO s FROM ledger_state;
  IF s.server_started_at IS DISTINCT FROM pg_postmaster_start_time() THEN
    PERFORM ops_look_at_server();
    SELECT * INTO s FROM ledger_state;
  END IF;
  RETURN s.paused_because;
END $$;

-- Start nothing from now on; what runs goes on. False: it was paused already.
CREATE FUNCTION ops_pause(p_reason text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
  UPDATE ledger_state SET paused_at = clock_timestamp(), paused_because = 'asked', reason = p_reason
    WHERE paused_because IS NULL;
  IF FOUND THEN
    PERFORM ops_audit('ledger.paused', 'ledger', NULL, NULL, jsonb_strip_nulls(jsonb_build_object(
      'because', 'asked', 'reason', p_reason)));
  END IF;
  RETURN FOUND;
END $$;

-- Go on; false: it was not paused. After a restore p_queued says what becomes of jobs that are queued here and may have
-- been run by the database that was lost: `run` them (again, perhaps), or `cancel` those that are not idempotent. Of
-- those that ran when the backup was made nobody knows how far they came.
CREATE FUNCTION ops_resume(p_queued text DEFAULT NULL, p_trust_failover boolean DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  s ledger_state;
  cancelled bigint := 0;
BEGIN
  PERFORM ops_paused();
  SELECT * INTO s FROM ledger_state;
  IF s.paused_because = 'restored' THEN
    IF p_queued IS NULL OR p_queued NOT IN ('run', 'cancel') THEN
      RAISE EXCEPTION 'after a restore, say what becomes of queued jobs: run or cancel' USING ERRCODE = '22023';
    END IF;
    UPDATE jobs SET began_at = coalesce(began_at, started_at)
      WHERE state = 'running' AND NOT idempotent AND started_at <= s.paused_at;
    IF p_queued = 'cancel' THEN
      SELECT count(ops_cancel(id, 'it may have been run by the database that was lost')) INTO cancelled
      FROM (SELECT id FROM jobs WHERE state = 'queued' AND NOT idempotent AND created_at <= s.paused_at ORDER BY id) q;
    END IF;
  END IF;
  PERFORM ops_set_resumed(p_trust_failover);
  IF s.paused_because IS NOT NULL THEN
    PERFORM ops_audit('ledger.resumed', 'ledger', NULL, NULL, jsonb_strip_nulls(jsonb_build_object(
      'because', s.paused_because, 'queued', p_queued, 'cancelled', nullif(cancelled, 0),
      'paused_seconds', round(extract(epoch FROM clock_timestamp() - s.paused_at)))));
  END IF;
  IF p_trust_failover IS NOT NULL THEN
    PERFORM ops_audit('ledger.failover_trusted', 'ledger', NULL, NULL,
      jsonb_build_object('trusts_failover', p_trust_failover));
  END IF;
  RETURN s.paused_because IS NOT NULL;
END $$;

CREATE FUNCTION ops_set_resumed(p_trust_failover boolean) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT AS $$
  UPDATE ledger_state SET paused_at = NULL, paused_because = NULL, reason = NULL,
    trusts_failover = coalesce(p_trust_failover, trusts_failover)
$$;
