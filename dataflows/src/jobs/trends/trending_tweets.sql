-- The hundred tweets that were liked most in 24 hours; of two that were liked as much, the newer. A like that is more than
-- an hour ahead does not count yet.
SELECT tweet_id::text AS key, count(*)::text AS value
FROM likes
WHERE :time_ms / 60000 - 1440 < floor(feedmill_micros(created_at) / 60000000::numeric)
  AND :time_ms / 60000 + 60 >= floor(feedmill_micros(created_at) / 60000000::numeric)
  AND NOT EXISTS (SELECT FROM tweets WHERE tweets.id = tweet_id AND deleted_at IS NOT NULL)
GROUP BY tweet_id
ORDER BY count(*) DESC, tweet_id DESC
LIMIT 100
