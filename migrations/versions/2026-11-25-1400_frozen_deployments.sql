-- What a deployment is to do is fixed when it is asked for; a rollback is a deployment that replaces another.

ALTER TABLE deployments
  ADD COLUMN frozen JSONB,
  ADD COLUMN digest TEXT,
  ADD COLUMN release_digest TEXT;

-- The next migration validates them.
ALTER TABLE deployments
  ADD CONSTRAINT ck_deployments_frozen CHECK ((frozen IS NULL) = (digest IS NULL)) NOT VALID,
  ADD CONSTRAINT ck_deployments_release_digest CHECK (release_digest ~ '^(sha256|git):[0-9a-f]{40,64}$') NOT VALID,
  ADD CONSTRAINT ck_deployments_rollback_deployment_id CHECK (rollback_deployment_id <> id) NOT VALID;

-- Commands and addresses are in it: the trail says that there is one, its digest which.
SELECT ops_audit_watch('deployments', '{frozen}', '{updated_at}', 'deployment');

-- A rollback that has succeeded makes the deployment that it replaces `rolled_back`, in the statement that records the
-- success, whoever makes it.
CREATE FUNCTION ops_deployment_replaced() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
  UPDATE deployments SET status = 'rolled_back', updated_at = clock_timestamp()
  WHERE id = NEW.rollback_deployment_id AND status = 'success';
  RETURN NULL;
END $$;

REVOKE ALL ON FUNCTION ops_deployment_replaced() FROM PUBLIC;

CREATE TRIGGER ops_deployment_replaced AFTER UPDATE OF status ON deployments
FOR EACH ROW WHEN (NEW.status = 'success' AND OLD.status <> 'success' AND NEW.rollback_deployment_id IS NOT NULL)
EXECUTE FUNCTION ops_deployment_replaced();
