-- Who mutes whom.
SELECT concat_ws(' ', muter_id, muted_id) AS key, '' AS value
FROM mutes
