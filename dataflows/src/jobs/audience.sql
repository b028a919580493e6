-- To whom an author's entries go.
SELECT following_id AS author, follower_id AS viewer
FROM follows
WHERE accepted
  AND follower_id IN (SELECT viewer FROM active)
  AND NOT EXISTS (SELECT FROM mutes WHERE muter_id = follower_id AND muted_id = following_id)
  AND NOT EXISTS (SELECT FROM blocks WHERE blocker_id = follower_id AND blocked_id = following_id)
  AND NOT EXISTS (SELECT FROM blocks WHERE blocker_id = following_id AND blocked_id = follower_id)
