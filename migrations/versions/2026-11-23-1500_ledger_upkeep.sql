-- The job ledger: what looks at all rows again and again, whatever became of anything else.

-- A queued job whose time has passed. The caller holds its row.
CREATE FUNCTION ops_expire_job(p_id uuid) RETURNS void
LANGUAGE sql SET search_path FROM CURRENT AS $$
  UPDATE jobs SET state = 'cancelled', outcome = 'expired', error = CASE WHEN attempt = 0
      THEN 'its time passed before it started' ELSE 'its time passed while it waited to be tried again' END,
    finished_at = clock_timestamp()
  WHERE id = p_id AND state = 'queued' AND expires_at <= clock_timestamp()
$$;

-- One look at what may have died: returns the jobs that were moved and the bells to ring.
-- A lease that ran out is marked at the first look and acted on at a later one, when the mark is older than the
-- grace; never within one grace of the server's start; a mark older than two graces (nobody looked for a while) is
-- set anew. p_dead: tokens of attempts of which the caller has seen every process to be gone.
-- Any number of callers may look: each takes rows that no other has. No lock says whose turn it is, since anyone who can
-- log in could hold it for ever.
CREATE FUNCTION ops_rescue(p_grace interval DEFAULT '4 s', p_dead uuid[] DEFAULT '{}')
RETURNS TABLE (id uuid, state text, outcome text, bells jsonb)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
  j jobs;
BEGIN
  IF ops_paused() = 'restored' THEN
    RETURN;  -- what ran when the backup was made is not over because this database says so
  END IF;
  UPDATE jobs SET suspect_at = clock_timestamp() WHERE id IN (
    SELECT id FROM jobs WHERE state = 'running' AND lease_until < clock_timestamp()
      AND (suspect_at IS NULL OR suspect_at < clock_timestamp() - 2 * p_grace)
    FOR NO KEY UPDATE SKIP LOCKED);
  FOR j IN
    SELECT * FROM jobs WHERE state = 'running' AND (lease_token = ANY (p_dead) OR (
      lease_until < clock_timestamp() AND suspect_at < clock_timestamp() - p_grace
      AND pg_postmaster_start_time() < clock_timestamp() - p_grace))
    ORDER BY lease_until LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED
  LOOP
    id := j.id;
    outcome := CASE WHEN j.began_at IS NULL THEN 'interrupted' ELSE 'lost' END;
    state := ops_end_attempt(j, outcome, CASE WHEN j.lease_token = ANY (p_dead)
        THEN format('worker %s died', j.worker) ELSE format('worker %s stopped answering', j.worker) END
      || CASE WHEN j.began_at IS NULL THEN ' before the work began'
         ELSE ' after the work had begun; nobody can know whether it took effect' END, NULL, NULL, NULL);
    bells := CASE WHEN j.lock_key IS NOT NULL OR state = 'queued' THEN ops_ring_next(j.id, j.lock_key) ELSE '[]' END;
    RETURN NEXT;
  END LOOP;
  FOR j IN
    SELECT * FROM jobs WHERE state = 'queued' AND expires_at <= clock_timestamp()
    ORDER BY expires_at LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED
  LOOP
    PERFORM ops_expire_job(j.id);
    id := j.id;
    state := 'cancelled';
    outcome := 'expired';
    bells := CASE WHEN j.lock_key IS NULL THEN '[]' ELSE ops_ring_next(j.id, j.lock_key) END;
    RETURN NEXT;
  END LOOP;
END $$;

-- The queues in which something is due for a ring.
CREATE FUNCTION ops_due_queues() RETURNS SETOF text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
  WITH RECURSIVE queues AS (
    (SELECT queue FROM jobs WHERE state = 'queued' ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT j.queue FROM jobs j WHERE j.state = 'queued' AND j.queue > q.queue ORDER BY j.queue LIMIT 1)
    FROM queues q WHERE q.queue IS NOT NULL
  )
  SELECT q.queue FROM queues q WHERE q.queue IS NOT NULL AND EXISTS (
    -- The first entry of an index range, whatever the statistics say of the rest.
    SELECT FROM generate_series(0, 9) p WHERE (SELECT j.ring_at FROM jobs j
      WHERE j.state = 'queued' AND j.queue = q.queue AND j.priority = p ORDER BY j.ring_at LIMIT 1) <= now())
$$;

-- Take up to p_room jobs of a queue whose bell is due, whatever became of earlier bells, and give each a longer pause
-- (2 s doubling to 2 min). A head that waits for its key is looked at again in 3 s; those behind it in 15 s, and less
-- often the longer they wait (a minute at most), since ten thousand of them would take up every look; the end of the
-- key's holder rings sooner. The caller commits first and publishes after.
-- Rows are found by index, whatever the statistics say: they are stale when a backlog has just been written.
CREATE FUNCTION ops_relay(p_queue text, p_room int)
RETURNS TABLE (id uuid, task text, queue text, priority int)
LANGUAGE sql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
  WITH due AS MATERIALIZED (
    -- Locked where they are read: what another relay has just taken is looked at again, and is due no more.
    SELECT d.* FROM generate_series(0, 9) AS p, LATERAL (
      SELECT j.* FROM jobs j WHERE j.state = 'queued' AND j.queue = p_queue AND j.priority = p AND j.ring_at <= now()
      ORDER BY j.ring_at LIMIT 200 FOR NO KEY UPDATE SKIP LOCKED) d
    WHERE (SELECT ops_paused()) IS NULL
  ), looked AS (
    SELECT l.id, l.priority, l.ring_at, CASE
      WHEN l.run_at > clock_timestamp() THEN 'early'  -- somebody moved its time by hand
      WHEN l.lock_key IS NULL THEN 'ring'
      WHEN EXISTS (SELECT FROM jobs w WHERE w.lock_key = l.lock_key AND w.queue = l.queue AND w.state = 'queued'
        AND w.run_at <= now() AND (w.priority, w.seq) < (l.priority, l.seq)) THEN 'behind'
      WHEN EXISTS (SELECT FROM jobs r WHERE r.lock_key = l.lock_key AND r.state = 'running') THEN 'waits'
      ELSE 'ring' END AS answer
    FROM due l
  ), ranked AS (
    SELECT k.*, row_number() OVER (PARTITION BY k.answer ORDER BY k.priority, k.ring_at) AS place FROM looked k
  ), moved AS (
    UPDATE jobs j SET rings = j.rings + (r.answer = 'ring')::int, ring_at = CASE r.answer
      WHEN 'ring' THEN clock_timestamp() + least(interval '2 s' * power(2, least(j.rings, 6)), interval '2 min')
      WHEN 'waits' THEN clock_timestamp() + interval '3 s'
      WHEN 'early' THEN j.run_at
      ELSE clock_timestamp() + greatest(interval '15 s', least((now() - j.run_at) / 4, interval '1 min')) END
    FROM ranked r WHERE j.id = r.id AND (r.answer <> 'ring' OR r.place <= p_room)
    RETURNING j.id, j.task, j.queue, j.priority, r.answer, r.place
  )
  SELECT m.id, m.task, m.queue, m.priority::int FROM moved m WHERE m.answer = 'ring' ORDER BY m.priority, m.place
$$;

-- May a periodic job run now? True for one caller per interval, however many beats there are.
CREATE FUNCTION ops_tick_due(p_name text, p_every interval) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
  INSERT INTO ticks (name) VALUES (p_name) ON CONFLICT DO NOTHING;
  -- A little early is due: two beats of one interval drift. A time to come is one of before the clock was set back.
  UPDATE ticks SET last_run_at = clock_timestamp()
  WHERE name = p_name AND (last_run_at IS NULL OR last_run_at <= clock_timestamp() - p_every * 0.9
    OR last_run_at > clock_timestamp() + p_every);
  RETURN FOUND;
END $$;

-- Close a tick: one entry when it changed something, one per hour with the count of idle runs. An empty object stands
-- for what is recorded elsewhere.
CREATE FUNCTION ops_tick_done(p_name text, p_details jsonb) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  t ticks;
BEGIN
  UPDATE ticks SET last_success_at = clock_timestamp(),
    idle_runs = CASE WHEN p_details IS NULL THEN idle_runs + 1 ELSE idle_runs END
  WHERE name = p_name RETURNING * INTO t;
  IF p_details <> '{}' THEN
    PERFORM ops_audit('tick.changed', 'tick', p_name, NULL, p_details);
  END IF;
  IF t.idle_runs > 0 AND (t.reported_at IS NULL OR t.reported_at < clock_timestamp() - interval '1 hour') THEN
    UPDATE ticks SET reported_at = clock_timestamp(), idle_runs = 0 WHERE name = p_name;
    PERFORM ops_audit('tick.idle', 'tick', p_name, NULL, jsonb_build_object('runs', t.idle_runs));
  END IF;
END $$;
