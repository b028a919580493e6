-- Who blocks whom.
SELECT concat_ws(' ', blocker_id, blocked_id) AS key, '' AS value
FROM blocks
