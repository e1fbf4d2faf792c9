-- The audit trail: one row per thing that happened, in the transaction in which it happened.
--
-- Every function here runs as its owner with a fixed search path, so the runtime role needs no right to write the
-- trail by hand, and nothing on a caller's search path can stand in for our tables.

-- What the caller said of itself for this transaction: set_config('ops.context', '{"actor": ...}', true).
CREATE FUNCTION ops_audit_context() RETURNS jsonb
LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT coalesce(nullif(current_setting('ops.context', true), ''), '{}')::jsonb
$$;

-- The context as columns. A statement that said nothing of its actor is recorded as the database's own.
CREATE FUNCTION ops_audit_actor(c jsonb) RETURNS TABLE (
  actor_type text, actor_id bigint, actor text, client text, ip_address inet, user_agent text, request_id text,
  task_id uuid, via text)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT coalesce(c->>'actor_type', 'database'), (c->>'actor_id')::bigint, coalesce(c->>'actor', session_user::text),
    c->>'client', (c->>'ip_address')::inet, c->>'user_agent', c->>'request_id', (c->>'task_id')::uuid, c->>'action'
$$;

-- Append one entry. The context is the transaction's own, or the one given.
CREATE FUNCTION ops_audit(
  p_action text, p_resource_type text, p_resource_id text,
  p_changes jsonb DEFAULT NULL, p_details jsonb DEFAULT NULL, p_context jsonb DEFAULT NULL
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT AS $$
  INSERT INTO audit_logs (action, resource_type, resource_id, changes, details,
    actor_type, actor_id, actor, client, ip_address, user_agent, request_id, task_id)
  SELECT p_action, p_resource_type, p_resource_id, p_changes,
    CASE WHEN a.via IS NULL THEN p_details ELSE coalesce(p_details, '{}') || jsonb_build_object('via', a.via) END,
    a.actor_type, a.actor_id, a.actor, a.client, a.ip_address, a.user_agent, a.request_id, a.task_id
  FROM ops_audit_actor(coalesce(p_context, ops_audit_context())) a
$$;

-- What is shown of one value: a secret never, and of a huge one its beginning, length and digest. STABLE, as
-- pg_column_size is: declared otherwise it would be called for each value, not made part of the statement.
CREATE FUNCTION ops_audit_value(p_value jsonb, p_secret boolean) RETURNS jsonb
LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT CASE
    WHEN p_value IS NULL OR p_value = 'null'::jsonb THEN 'null'::jsonb
    WHEN p_secret THEN '"[secret]"'::jsonb
    WHEN pg_column_size(p_value) < 8000 THEN p_value
    ELSE jsonb_build_object('head', left(p_value::text, 1000), 'length', length(p_value::text),
      'sha256', encode(sha256(convert_to(p_value::text, 'UTF8')), 'hex'))
  END
$$;

-- {column: [old, new]} of the columns that differ; NULL when none does. One row, but a set, and without a search path of
-- its own: only so does it become part of the statement that it is used in, which is many times faster than a call for
-- each row. Those who use it have a fixed path.
CREATE FUNCTION ops_audit_diff(p_old jsonb, p_new jsonb, p_secret text[], p_ignore text[])
RETURNS TABLE (changes jsonb)
LANGUAGE sql STABLE PARALLEL SAFE ROWS 1 AS $$
  SELECT jsonb_object_agg(k.key,
    jsonb_build_array(ops_audit_value(k.old, k.key = ANY (p_secret)), ops_audit_value(k.new, k.key = ANY (p_secret))))
  FROM (
    SELECT n.key, p_old->n.key AS old, p_new->n.key AS new
    -- In the list, not as a table, so that the keys are not stored away first.
    FROM (SELECT jsonb_object_keys(coalesce(p_new, p_old)) AS key) n WHERE NOT n.key = ANY (p_ignore)
    OFFSET 0  -- each value is looked up once, not wherever it is named
  ) k
  WHERE coalesce(k.old, 'null') <> coalesce(k.new, 'null')
$$;

-- A row's primary key as text. Parts of a composite key are joined by a slash, which is escaped within them: two
-- rows of one key would be taken for each other.
CREATE FUNCTION ops_audit_key(p_row jsonb, p_keys text[]) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT CASE WHEN cardinality(p_keys) = 1 THEN p_row->>p_keys[1]
    ELSE (SELECT string_agg(replace(replace(p_row->>k, '\', '\\'), '/', '\/'), '/' ORDER BY n)
      FROM unnest(p_keys) WITH ORDINALITY AS u(k, n)) END
$$;

-- A table's primary key as it is named now.
CREATE FUNCTION ops_audit_keys(p_table oid) RETURNS text[]
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
  SELECT array_agg(a.attname::text ORDER BY k.n)
  FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n), pg_attribute a
  WHERE i.indrelid = p_table AND i.indisprimary AND a.attrelid = p_table AND a.attnum = k.attnum
$$;

-- The columns that must not be shown: those that were named when the table was put under audit, and what has their
-- numbers now, since a renamed column keeps its number. Where a name is gone, all columns, until the table is put under
-- audit again: after a restore a number may be another column's.
CREATE FUNCTION ops_audit_secret(p_table oid, p_numbers int2[], p_names text[]) RETURNS text[]
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
  SELECT CASE WHEN p_names = '{}' THEN p_names ELSE (
    SELECT CASE WHEN p_names <@ array_agg(a.attname::text)
      THEN array_agg(a.attname::text) FILTER (WHERE a.attname = ANY (p_names) OR a.attnum = ANY (p_numbers))
      ELSE array_agg(a.attname::text) END
    FROM pg_attribute a WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped) END
$$;

-- Statement-level: pairs old and new rows by primary key. Arguments: noun, numbers and names of the secret columns, names
-- of the ignored ones.
CREATE FUNCTION ops_audit_rows() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
  noun text := TG_ARGV[0];
  keys text[] := ops_audit_keys(TG_RELID);
  secret text[] := ops_audit_secret(TG_RELID, TG_ARGV[1]::int2[], TG_ARGV[2]::text[]);
  ignored text[] := TG_ARGV[3]::text[];
  context jsonb := ops_audit_context();
  details jsonb := CASE WHEN context ? 'action' THEN jsonb_build_object('via', context->>'action') END;
  row_count bigint;
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO audit_logs (action, resource_type, resource_id, changes, details,
      actor_type, actor_id, actor, client, ip_address, user_agent, request_id, task_id)
    SELECT noun || '.created', noun, CASE WHEN keys[2] IS NULL THEN n.new->>keys[1] ELSE ops_audit_key(n.new, keys) END,
      c.changes, details,
      a.actor_type, a.actor_id, a.actor, a.client, a.ip_address, a.user_agent, a.request_id, a.task_id
    FROM (SELECT to_jsonb(x) AS new FROM new_rows x OFFSET 0) n, ops_audit_diff(NULL, n.new, secret, ignored) c,
      ops_audit_actor(context) a;
  ELSIF TG_OP = 'DELETE' THEN
    INSERT INTO audit_logs (action, resource_type, resource_id, changes, details,
      actor_type, actor_id, actor, client, ip_address, user_agent, request_id, task_id)
    SELECT noun || '.deleted', noun, CASE WHEN keys[2] IS NULL THEN o.old->>keys[1] ELSE ops_audit_key(o.old, keys) END,
      c.changes, details,
      a.actor_type, a.actor_id, a.actor, a.client, a.ip_address, a.user_agent, a.request_id, a.task_id
    FROM (SELECT to_jsonb(x) AS old FROM old_rows x OFFSET 0) o, ops_audit_diff(o.old, NULL, secret, ignored) c,
      ops_audit_actor(context) a;
  ELSIF TG_OP = 'UPDATE' THEN
    INSERT INTO audit_logs (action, resource_type, resource_id, changes, details,
      actor_type, actor_id, actor, client, ip_address, user_agent, request_id, task_id)
    SELECT noun || CASE WHEN d.old IS NULL THEN '.created' WHEN d.new IS NULL THEN '.deleted' ELSE '.updated' END,
      noun, d.key, c.changes, details,
      a.actor_type, a.actor_id, a.actor, a.client, a.ip_address, a.user_agent, a.request_id, a.task_id
    FROM (
      SELECT key, o.old, n.new
      FROM (
        SELECT r.old, CASE WHEN keys[2] IS NULL THEN r.old->>keys[1] ELSE ops_audit_key(r.old, keys) END AS key
        FROM (SELECT to_jsonb(x) AS old FROM old_rows x OFFSET 0) r
      ) o FULL JOIN (
        SELECT r.new, CASE WHEN keys[2] IS NULL THEN r.new->>keys[1] ELSE ops_audit_key(r.new, keys) END AS key
        FROM (SELECT to_jsonb(x) AS new FROM new_rows x OFFSET 0) r
      ) n USING (key)
      OFFSET 0
    ) d, ops_audit_diff(d.old, d.new, secret, ignored) c, ops_audit_actor(context) a
    WHERE c.changes IS NOT NULL;
  ELSE
    -- Of a table that belongs to somebody else the number of rows may not be ours to know.
    IF has_schema_privilege(TG_TABLE_SCHEMA, 'USAGE') AND has_table_privilege(TG_RELID, 'SELECT') THEN
      EXECUTE format('SELECT count(*) FROM %I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME) INTO row_count;
    END IF;
    PERFORM ops_audit(noun || '.truncated', noun, NULL, NULL, jsonb_build_object('rows', row_count)
      || CASE WHEN (SELECT relispartition FROM pg_class WHERE oid = TG_RELID)
        THEN jsonb_build_object('partition', TG_TABLE_NAME) ELSE '{}' END);
  END IF;
  RETURN NULL;
END $$;

-- The numbers of these columns and of what is generated from them, which shows them.
CREATE FUNCTION ops_audit_numbers(p_table regclass, p_names text[]) RETURNS int2[]
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
  SELECT coalesce(array_agg(a.attnum ORDER BY a.attnum), '{}') FROM pg_attribute a
  WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped AND (a.attname = ANY (p_names)
    OR a.attgenerated <> '' AND EXISTS (
      SELECT FROM pg_attrdef f, pg_depend d, pg_attribute s
      WHERE f.adrelid = p_table AND f.adnum = a.attnum AND d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
        AND d.refobjid = p_table AND d.refobjsubid = s.attnum AND s.attrelid = p_table AND s.attname = ANY (p_names)))
$$;

-- Put a table under audit: INSERT, UPDATE, DELETE and TRUNCATE, whoever does it and however; each of its partitions as
-- well, since what names a partition passes by the triggers of the whole. Again after a partition was added.
-- `redact` names columns whose values are never shown, `ignore` columns that carry no fact.
CREATE FUNCTION ops_audit_watch(
  p_table regclass, redact text[] DEFAULT '{}', ignore text[] DEFAULT '{}', noun text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  part regclass;
  secret int2[];
  keys text[] := ops_audit_keys(p_table);
  unknown text := (SELECT string_agg(n, ', ') FROM unnest(redact || ignore) n WHERE NOT EXISTS (
    SELECT FROM pg_attribute WHERE attrelid = p_table AND attname = n AND attnum > 0 AND NOT attisdropped));
  args text;
BEGIN
  IF (SELECT relkind FROM pg_class WHERE oid = p_table) NOT IN ('r', 'p') THEN
    RAISE EXCEPTION '% is not a table', p_table USING ERRCODE = 'wrong_object_type';
  ELSIF keys IS NULL THEN
    RAISE EXCEPTION '% has no primary key, so its rows cannot be told apart', p_table
      USING HINT = 'Add a primary key, then watch it.';
  ELSIF keys && redact THEN
    RAISE EXCEPTION 'the primary key of % names its rows in the trail and cannot be redacted', p_table
      USING HINT = 'Give it a key that may be shown.';
  ELSIF unknown IS NOT NULL THEN  -- a misspelt secret would be shown
    RAISE EXCEPTION '% has no column %', p_table, unknown USING ERRCODE = 'undefined_column';
  END IF;
  PERFORM ops_audit_unwatch(p_table);
  noun := coalesce(noun, (SELECT relname FROM pg_class WHERE oid = p_table));
  FOR part IN SELECT p_table UNION SELECT relid FROM pg_partition_tree(p_table) t JOIN pg_class c ON c.oid = t.relid
    WHERE c.relkind IN ('r', 'p')
  LOOP
    secret := ops_audit_numbers(part, redact);
    args := format('%L, %L, %L, %L', noun, secret, (SELECT coalesce(array_agg(attname::text ORDER BY attnum), '{}')
      FROM pg_attribute WHERE attrelid = part AND attnum = ANY (secret)), ignore);
    EXECUTE format('CREATE TRIGGER ops_audit_insert AFTER INSERT ON %s REFERENCING NEW TABLE AS new_rows
      FOR EACH STATEMENT EXECUTE FUNCTION ops_audit_rows(%s)', part, args);
    EXECUTE format('CREATE TRIGGER ops_audit_update AFTER UPDATE ON %s REFERENCING OLD TABLE AS old_rows
      NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION ops_audit_rows(%s)', part, args);
    EXECUTE format('CREATE TRIGGER ops_audit_delete AFTER DELETE ON %s REFERENCING OLD TABLE AS old_rows
      FOR EACH STATEMENT EXECUTE FUNCTION ops_audit_rows(%s)', part, args);
    EXECUTE format('CREATE TRIGGER ops_audit_truncate BEFORE TRUNCATE ON %s
      FOR EACH STATEMENT EXECUTE FUNCTION ops_audit_rows(%s)', part, args);
  END LOOP;
END $$;

-- Take a table and its partitions out of audit.
CREATE FUNCTION ops_audit_unwatch(p_table regclass) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  t record;
BEGIN
  FOR t IN SELECT tgname, tgrelid::regclass AS of_table FROM pg_trigger
    WHERE tgname IN ('ops_audit_insert', 'ops_audit_update', 'ops_audit_delete', 'ops_audit_truncate')
      AND (tgrelid = p_table OR tgrelid IN (SELECT relid FROM pg_partition_tree(p_table)))
  LOOP
    EXECUTE format('DROP TRIGGER %I ON %s', t.tgname, t.of_table);
  END LOOP;
END $$;

-- The trail only grows. Retention drops whole partitions by ops_audit_drop_partitions.
CREATE FUNCTION ops_audit_is_append_only() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the audit trail is append-only: % is refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TRIGGER ops_append_only BEFORE UPDATE OR DELETE ON audit_logs
  FOR EACH ROW EXECUTE FUNCTION ops_audit_is_append_only();
CREATE TRIGGER ops_append_only_truncate BEFORE TRUNCATE ON audit_logs
  FOR EACH STATEMENT EXECUTE FUNCTION ops_audit_is_append_only();

-- Seals only grow as well, one after the other: a role that may add one can neither leave numbers out nor use them up.
CREATE FUNCTION ops_audit_seal_follows() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
  IF NEW.number <> (SELECT coalesce(max(number), 0) + 1 FROM audit_seals) THEN
    RAISE EXCEPTION 'seal % does not follow the newest one', NEW.number USING ERRCODE = 'unique_violation';
  END IF;
  RETURN NEW;
END $$;

CREATE TRIGGER ops_append_only BEFORE UPDATE OR DELETE ON audit_seals
  FOR EACH ROW EXECUTE FUNCTION ops_audit_is_append_only();
CREATE TRIGGER ops_append_only_truncate BEFORE TRUNCATE ON audit_seals
  FOR EACH STATEMENT EXECUTE FUNCTION ops_audit_is_append_only();
CREATE TRIGGER ops_seal_follows BEFORE INSERT ON audit_seals
  FOR EACH ROW EXECUTE FUNCTION ops_audit_seal_follows();

-- Make the partitions of this month and the six that follow; returns how many were made. No DEFAULT partition: it
-- would block detaching and hide that the months have run out. Whoever reads the trail in an open transaction is in the
-- way, and all that write it would wait behind: so this gives up soon; there are months to try again.
CREATE FUNCTION ops_audit_make_partitions(p_ahead int DEFAULT 6) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET timezone = 'UTC' SET lock_timeout = '500ms' AS $$
DECLARE
  month date;
  part text;
  made int := 0;
BEGIN
  LOCK TABLE ONLY audit_logs IN SHARE UPDATE EXCLUSIVE MODE;  -- one at a time; who may only read cannot hold it
  FOR i IN 0..least(greatest(p_ahead, 1), 24) LOOP
    month := date_trunc('month', now())::date + make_interval(months => i);
    part := format('audit_logs_%s', to_char(month, 'YYYY_MM'));
    CONTINUE WHEN EXISTS (SELECT FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
      WHERE inhparent = 'audit_logs'::regclass AND c.relname = part);
    EXECUTE format('CREATE TABLE %I PARTITION OF audit_logs FOR VALUES FROM (%L) TO (%L)',
      part, month::timestamptz, (month + interval '1 month')::timestamptz);
    EXECUTE format('CREATE TRIGGER ops_append_only_truncate BEFORE TRUNCATE ON %I
      FOR EACH STATEMENT EXECUTE FUNCTION ops_audit_is_append_only()', part);
    made := made + 1;
  END LOOP;
  RETURN made;
EXCEPTION WHEN lock_not_available THEN
  RAISE WARNING 'no partition of the audit trail was made: somebody reads it in an open transaction';
  RETURN 0;
END $$;

-- Drop partitions that ended more than p_keep_days ago, never less than 90, and say so in the trail. Gives up soon, as
-- the one above.
CREATE FUNCTION ops_audit_drop_partitions(p_keep_days int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET timezone = 'UTC' SET lock_timeout = '500ms' AS $$
DECLARE
  part record;
  entries bigint;
  dropped int := 0;
BEGIN
  IF p_keep_days < 90 THEN
    RAISE EXCEPTION 'the audit trail is kept for at least 90 days, not %', p_keep_days;
  END IF;
  LOCK TABLE ONLY audit_logs IN SHARE UPDATE EXCLUSIVE MODE;
  FOR part IN
    SELECT c.relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
    WHERE inhparent = 'audit_logs'::regclass AND c.relname ~ '^audit_logs_\d{4}_\d{2}$'
      AND right(c.relname, 7) COLLATE "C" < to_char(now() - make_interval(days => p_keep_days), 'YYYY_MM')
  LOOP
    EXECUTE format('SELECT count(*) FROM %I', part.relname) INTO entries;
    EXECUTE format('DROP TABLE %I', part.relname);
    PERFORM ops_audit('audit.partition_dropped', 'audit', part.relname, NULL,
      jsonb_build_object('entries', entries, 'keep_days', p_keep_days));
    dropped := dropped + 1;
  END LOOP;
  RETURN dropped;
EXCEPTION WHEN lock_not_available THEN
  RAISE WARNING 'no partition of the audit trail was dropped: somebody reads it in an open transaction';
  RETURN 0;
END $$;

SELECT ops_audit_make_partitions(6);
SELECT ops_audit_watch('users', '{hashed_password}', '{updated_at,version_id,last_login_at}', 'user');
SELECT ops_audit_watch('api_keys', '{encrypted_value}', '{updated_at,version_id}', 'secret');
-- Commands, URLs and settings may hold what nobody else should read: that they changed is recorded, not how.
SELECT ops_audit_watch('infrastructure', '{settings,encrypted_settings}', '{updated_at,version_id}', 'infrastructure');
SELECT ops_audit_watch('applications', '{command,working_directory,health_check_url,configuration}',
  '{updated_at,version_id}', 'application');
SELECT ops_audit_watch('deployments', '{}', '{updated_at}', 'deployment');
SELECT ops_audit_watch('monitoring_alerts', '{}', '{updated_at}', 'alert');
SELECT ops_audit_watch('encryption_keys', '{check_value}', '{}', 'encryption_key');
