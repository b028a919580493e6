-- Viewer to hot accounts followed.
WITH active AS MATERIALIZED (@active), hot AS MATERIALIZED (@hot), audience AS (@audience)
SELECT concat_ws(' ', viewer, author) AS key, '' AS value
FROM audience
WHERE author IN (SELECT author FROM hot)
