DROP TRIGGER ops_deployment_replaced ON deployments;

DROP FUNCTION ops_deployment_replaced();

SELECT ops_audit_watch('deployments', '{}', '{updated_at}', 'deployment');

-- What these columns held is lost with them, as with every downgrade.
-- squawk-ignore ban-drop-column
ALTER TABLE deployments DROP COLUMN frozen, DROP COLUMN digest, DROP COLUMN release_digest,
  DROP CONSTRAINT ck_deployments_rollback_deployment_id;
