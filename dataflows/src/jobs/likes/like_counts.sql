-- How often tweets are liked, also deleted ones.
SELECT concat_ws(' ', 'likes', tweet_id) AS key, count(*)::text AS value
FROM likes
GROUP BY tweet_id
