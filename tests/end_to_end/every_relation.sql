INSERT INTO accounts (user_id, username) SELECT n, 'u' || n FROM generate_series(1, 5) AS n;
INSERT INTO users (id, username, display_name, bio) SELECT n, 'u' || n, 'Ünï ' || n, repeat('é', n) FROM generate_series(1, 5) AS n;
INSERT INTO activity (user_id, day) SELECT n, (now() AT TIME ZONE 'UTC')::date FROM generate_series(1, 4) AS n;
INSERT INTO follows (follower_id, following_id, accepted)
    SELECT one, other, (one + other) % 4 <> 0 FROM generate_series(1, 5) AS one, generate_series(1, 5) AS other WHERE one <> other;
INSERT INTO tweets (id, user_id, content, conversation_id)
    SELECT id, 1 + n % 5, 'tweet ' || n, id FROM (SELECT n, feedmill_id() AS id FROM generate_series(1, 50) AS n) AS numbered;
INSERT INTO tweets (id, user_id, content, reply_to_id, conversation_id)
    SELECT feedmill_id(), 1 + (id % 5)::int, 'reply', id, id FROM tweets WHERE reply_to_id IS NULL;
INSERT INTO likes (user_id, tweet_id) SELECT users.id, tweets.id FROM users, tweets WHERE (users.id + tweets.id) % 3 = 0;
INSERT INTO retweets (user_id, tweet_id) SELECT users.id, tweets.id FROM users, tweets WHERE (users.id + tweets.id) % 7 = 0;
INSERT INTO mutes (muter_id, muted_id) VALUES (1, 2), (3, 1), (2, 5);
INSERT INTO blocks (blocker_id, blocked_id) VALUES (4, 1), (5, 2);
