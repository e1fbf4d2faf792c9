-- A worker that drains finishes what runs there and takes nothing new. The flag is the process's own: one that starts
-- anew, under whatever name, works again.
ALTER TABLE processes ADD COLUMN draining_at TIMESTAMP WITH TIME ZONE;

-- Ask processes to drain, or to work again; answers those for which that is new. Each leaves an entry in the trail.
CREATE FUNCTION ops_drain(p_ids text[], p_drain boolean) RETURNS SETOF text
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  p processes;
BEGIN
  FOR p IN
    UPDATE processes SET draining_at = CASE WHEN p_drain THEN clock_timestamp() END
    WHERE id = ANY (p_ids) AND (draining_at IS NULL) = p_drain RETURNING *
  LOOP
    PERFORM ops_audit(CASE WHEN p_drain THEN 'worker.drained' ELSE 'worker.undrained' END, 'worker', p.name, NULL,
      jsonb_build_object('process', p.id, 'pid', p.pid));
    RETURN NEXT p.id;
  END LOOP;
END $$;
REVOKE ALL ON FUNCTION ops_drain(text[], boolean) FROM PUBLIC;
