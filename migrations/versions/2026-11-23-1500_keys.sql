-- Encrypted columns: what a retired key has sealed is not stored.

-- A process that was not started anew since the promotion seals with the old key still. Its write waits for a
-- retirement that is under way, and fails after it; otherwise it would leave what nobody can open once the key is gone.
-- Argument: the column.
CREATE FUNCTION ops_refuse_retired_key() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
  stored text := to_jsonb(NEW)->>TG_ARGV[0];
  key_id text := split_part(left(stored, 40), ':', 2);
BEGIN
  IF TG_OP = 'UPDATE' AND stored IS NOT DISTINCT FROM to_jsonb(OLD)->>TG_ARGV[0] THEN
    RETURN NEW;
  END IF;
  -- The lock: `retire` counts the rows only once no transaction is left that may write one.
  PERFORM FROM encryption_keys WHERE id = key_id FOR KEY SHARE;
  IF EXISTS (SELECT FROM encryption_keys WHERE id = key_id AND retired_at IS NOT NULL) THEN
    RAISE EXCEPTION 'the encryption key % was retired and seals nothing any more', key_id
      USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Start this process anew with the current keys.';
  END IF;
  RETURN NEW;
END $$;

CREATE TRIGGER ops_refuse_retired_key BEFORE INSERT OR UPDATE OF encrypted_value ON api_keys
  FOR EACH ROW EXECUTE FUNCTION ops_refuse_retired_key('encrypted_value');
CREATE TRIGGER ops_refuse_retired_key BEFORE INSERT OR UPDATE OF encrypted_settings ON infrastructure
  FOR EACH ROW WHEN (NEW.encrypted_settings IS NOT NULL)
  EXECUTE FUNCTION ops_refuse_retired_key('encrypted_settings');
