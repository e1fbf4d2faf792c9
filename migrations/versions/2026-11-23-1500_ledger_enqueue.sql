-- The job ledger: how a job comes into being, and how it is rung.

-- Write a job in the caller's transaction. An id made by the caller makes the call repeatable; a taken unique key
-- answers with the job that holds it and created = false. p_rung: the caller will ring it himself after commit, so
-- the relay gives him two seconds.
CREATE FUNCTION ops_enqueue(
  p_task text, p_args jsonb DEFAULT '[]', p_kwargs jsonb DEFAULT '{}', p_queue text DEFAULT 'control',
  p_id uuid DEFAULT NULL, p_run_at timestamptz DEFAULT NULL, p_expires_at timestamptz DEFAULT NULL,
  p_priority int DEFAULT 5, p_lock_key text DEFAULT NULL, p_unique_key text DEFAULT NULL,
  p_unique_while text DEFAULT 'live', p_idempotent boolean DEFAULT false, p_max_attempts int DEFAULT 3,
  p_max_rescues int DEFAULT 2, p_timeout_seconds int DEFAULT 3600, p_lease_seconds float DEFAULT 9,
  p_backoff_seconds float DEFAULT 2, p_rung boolean DEFAULT false,
  OUT id uuid, OUT created boolean
)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  new_id uuid := coalesce(p_id, gen_random_uuid());
  due timestamptz := greatest(coalesce(p_run_at, clock_timestamp()), clock_timestamp());
BEGIN
  created := false;
  FOR i IN 1..10 LOOP
    INSERT INTO jobs AS j (id, task, queue, args, kwargs, context, priority, idempotent, unique_key, unique_while,
      lock_key, max_attempts, max_rescues, timeout_seconds, lease_seconds, backoff_seconds, run_at, expires_at, ring_at)
    VALUES (new_id, p_task, p_queue, p_args, p_kwargs, ops_audit_context() - 'task_id' - 'action', p_priority,
      p_idempotent, p_unique_key, p_unique_while, p_lock_key, p_max_attempts, p_max_rescues, p_timeout_seconds,
      p_lease_seconds, p_backoff_seconds, due, p_expires_at,
      CASE WHEN p_rung AND p_run_at IS NULL THEN due + interval '2 s' ELSE due END)
    ON CONFLICT DO NOTHING
    RETURNING j.id INTO id;
    IF FOUND THEN
      created := true;
      RETURN;
    END IF;
    SELECT j.id INTO id FROM jobs j WHERE j.id = new_id;
    IF NOT FOUND THEN
      -- What waits to be tried again stands for no new request: were it to, two could not wait at once.
      SELECT j.id INTO id FROM jobs j WHERE j.unique_key = p_unique_key AND j.unique_while = p_unique_while
        AND (j.state = 'queued' AND (j.attempt = 0 OR p_unique_while = 'live')
          OR j.state = 'running' AND p_unique_while = 'live');
    END IF;
    EXIT WHEN FOUND;  -- else the holder ended in between: try again
  END LOOP;
  IF id IS NULL THEN
    RAISE EXCEPTION 'could not enqueue %: its unique key % changes hands all the time', p_task, p_unique_key;
  END IF;
END $$;

-- Ring one queued job that is due, and leave it alone for a second; returns its bell to publish after commit, or none.
-- SKIP LOCKED, because waiting here would deadlock with a claim; a skipped bell is rung by the relay.
CREATE FUNCTION ops_ring(p_id uuid) RETURNS jsonb
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  j jobs;
BEGIN
  UPDATE jobs SET ring_at = clock_timestamp() + interval '1 s' WHERE id = (
    SELECT w.id FROM jobs w WHERE w.id = p_id AND w.state = 'queued' AND w.run_at <= clock_timestamp()
    FOR NO KEY UPDATE SKIP LOCKED)
  RETURNING * INTO j;
  RETURN CASE WHEN FOUND THEN jsonb_build_array(jsonb_build_object(
    'id', j.id, 'task', j.task, 'queue', j.queue, 'priority', j.priority)) ELSE '[]' END;
END $$;

-- Ring whoever may run now that a job has ended or waits again: the head waiter of each queue of its key, if the key
-- is free; without a key the job itself.
CREATE FUNCTION ops_ring_next(p_id uuid, p_key text) RETURNS jsonb
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  bells jsonb := '[]';
  head uuid;
  in_queue text := '';
BEGIN
  IF p_key IS NULL THEN
    RETURN ops_ring(p_id);
  ELSIF EXISTS (SELECT FROM jobs r WHERE r.lock_key = p_key AND r.state = 'running') THEN
    RETURN bells;
  END IF;
  LOOP
    SELECT w.queue INTO in_queue FROM jobs w WHERE w.lock_key = p_key AND w.state = 'queued' AND w.queue > in_queue
      ORDER BY w.queue LIMIT 1;
    EXIT WHEN NOT FOUND;
    SELECT w.id INTO head FROM jobs w WHERE w.lock_key = p_key AND w.queue = in_queue AND w.state = 'queued'
      AND w.run_at <= clock_timestamp() ORDER BY w.priority, w.seq LIMIT 1;
    IF FOUND THEN
      bells := bells || ops_ring(head);
    END IF;
  END LOOP;
  RETURN bells;
END $$;
