//! The change log in Kafka: what is published reads as Debezium documents it, equals the change log whatever dies, and is what
//! a reader needs to begin anywhere.

pub mod estate;
mod plain;
mod registry;
mod security;

pub mod servers {
    use std::collections::BTreeMap;
    use std::os::unix::process::ExitStatusExt;
    use std::time::{Duration, Instant};

    use feedmill_connectors::kafka::{
        BatchReader, Compression, Content, Encoder, Hydration, KafkaError, Layout, Origin, Part, Published, Publisher,
        Share, Times, TopicOptions, Topics,
    };
    use feedmill_model::{Lsn, Position, Relation, SourceId};
    use feedmill_test_servers::Kafka;
    use futures::executor::block_on;
    use nix::sys::signal::Signal;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
    use rdkafka::client::DefaultClientContext;
    use rdkafka::config::ClientConfig;
    use rdkafka::consumer::Consumer;
    use rdkafka::{Offset, TopicPartitionList};
    use serde_json::Value;

    use super::estate::{Estate, capture, log_in, stage_lsn};
    use super::plain;
    use crate::crash::workload::{HUGE, PEOPLE, Writer};
    use crate::postgres::Postgres;
    use crate::system::{LIMIT, System};

    const OPTIONS: TopicOptions = TopicOptions {
        partitions: 3,
        replication: 1,
        retention: Duration::from_secs(3_600),
        compression: Compression::Lz4,
    };

    /// The rows of a table as they are in PostgreSQL, with the columns in the form of Debezium's types.
    pub(super) async fn in_postgres(sql: &tokio_postgres::Client, relation: Relation) -> plain::Table {
        let times = ["created_at", "updated_at", "deleted_at"];
        let columns = relation.columns().iter().map(|column| {
            let value = match *column {
                name if times.contains(&name) => format!(
                    "regexp_replace(regexp_replace(to_char({name} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.USZ'),
                         '0+Z$', 'Z'), '\\.Z$', 'Z')"
                ),
                "day" => "day - '1970-01-01'::date".to_owned(),
                "media" => "media::text".to_owned(),
                name => name.to_owned(),
            };
            format!("'{column}', {value}")
        });
        let columns = columns.collect::<Vec<_>>().join(", ");
        let query = format!("SELECT json_build_object({columns})::text FROM {}", relation.table());
        let rows = sql.query(&query, &[]).await.unwrap();
        let key = |row: &Value| {
            let names = relation.columns().iter().take(relation.key_columns());
            Value::Object(names.map(|name| ((*name).to_owned(), row[*name].clone())).collect()).to_string()
        };
        rows.iter()
            .map(|row| {
                let row: Value = serde_json::from_str(row.get(0)).unwrap();
                (key(&row), row)
            })
            .collect()
    }

    /// Records by topic as a consumer sees them that knows nothing of us.
    async fn records(servers: &str, topics: impl Iterator<Item = &str>) -> BTreeMap<String, Vec<plain::Record>> {
        let (servers, topics) = (servers.to_owned(), topics.map(str::to_owned).collect::<Vec<_>>());
        let read = move || topics.into_iter().map(|topic| (topic.clone(), plain::records(&servers, &topic))).collect();
        tokio::task::spawn_blocking(read).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_table_is_rebuilt_by_who_knows_only_what_debezium_documents() {
        let kafka = Kafka::shared();
        let estate = Estate::start(kafka, Layout::Tables, &[]).await;
        let mut writer = Writer::new(&estate.postgres);
        writer.run(PEOPLE).await;
        writer.write_some(&mut ChaCha8Rng::seed_from_u64(7), 120).await;
        let sql = estate.postgres.sql().await;
        sql.batch_execute(
            "INSERT INTO accounts (user_id, username) VALUES (-5, 'odd'), (-6, 'even');
             INSERT INTO users (id, username, display_name, bio, created_at, updated_at, deleted_at)
                 VALUES (-5, 'odd', E'\"\\\\\\n\u{1F980}', '', '2020-02-29 23:59:59.000001+00', '9999-12-31', NULL)",
        )
        .await
        .unwrap();
        estate.published().await;
        let topics = Topics::of(&estate.to);
        for topics in [topics.changes().collect::<Vec<_>>(), topics.rows().collect()] {
            let mut seen = 0;
            for (topic, records) in records(&kafka.bootstrap(), topics.into_iter()).await {
                let mut tables = plain::tables(&records);
                let table = topic.trim_end_matches(".rows").rsplit('.').next().unwrap();
                let relation = Relation::ALL.into_iter().find(|relation| relation.table() == table).unwrap();
                let published = tables.remove(table).unwrap_or_default();
                assert_eq!(published, in_postgres(&sql, relation).await, "{topic}");
                assert!(tables.is_empty(), "{topic} has records of other tables");
                seen += published.len();
            }
            assert!(seen > 200, "{seen} rows are too few to say anything");
        }
        // A transaction of the envelope is the batch: its events are numbered from 1, whatever their topics.
        let mut orders: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for record in records(&kafka.bootstrap(), topics.changes()).await.into_values().flatten() {
            let value = record.value.unwrap();
            let transaction = &value["transaction"];
            let order = transaction["total_order"].as_u64().unwrap();
            orders.entry(transaction["id"].as_str().unwrap().to_owned()).or_default().push(order);
            assert_eq!(value["ts_ms"].as_i64(), Some(record.timestamp));
        }
        for (batch, mut orders) in orders {
            orders.sort_unstable();
            assert!(orders.iter().copied().eq(1..=orders.len() as u64), "{batch}: {orders:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn four_topics_of_subjects_hold_the_same() {
        // Its topics have no prefix.
        let kafka = Kafka::mortal();
        let mut estate = Estate::start(&kafka, Layout::Subjects, &[]).await;
        let mut writer = Writer::new(&estate.postgres);
        writer.run(PEOPLE).await;
        writer.write_some(&mut ChaCha8Rng::seed_from_u64(4), 150).await;
        estate.published_is_the_log().await;
        let tweets = records(&kafka.bootstrap(), ["tweet-interactions"].into_iter()).await;
        let own = |record: &&plain::Record| {
            let table = record.key.as_ref().unwrap()["__dbz__physicalTableIdentifier"].as_str().unwrap().to_owned();
            table == format!("{}.public.likes", estate.to.prefix)
        };
        assert!(tweets["tweet-interactions"].iter().filter(own).count() > 10);
        // Another log does not come among it.
        let postgres = Postgres::new(&[]).await;
        let printed = capture(&postgres, &log_in(&kafka, Layout::Subjects), &[]).expect_start_failure().await;
        assert!(printed.contains("they are of another log"), "{printed}");
    }

    /// Starts with a failpoint, writes until it has ended the process, and starts again without.
    async fn die_at(estate: &mut Estate, writer: &mut Writer, point: &str, rng: &mut ChaCha8Rng) {
        estate.capture.failpoints = Some(point.to_owned());
        // It may die before it says where it listens.
        let _ = estate.capture.spawn().await;
        let died = async |capture: &System| {
            writer.write_some(rng, 5).await;
            !capture.is_running()
        };
        estate.capture.until("it died there", died).await;
        let status = estate.capture.wait();
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}\n{}", estate.capture.log());
        estate.capture.failpoints = None;
        writer.write_some(rng, 5).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn c43_a_kill_at_each_failpoint_of_publishing_leaves_kafka_equal_to_the_log() {
        let mut estate = Estate::start(Kafka::shared(), Layout::Tables, &[]).await;
        let mut writer = Writer::new(&estate.postgres);
        let mut rng = ChaCha8Rng::seed_from_u64(43);
        writer.run(PEOPLE).await;
        estate.anew(Kafka::shared()).await;
        for point in ["publish_before", "publish_commit_before", "publish_commit_after"] {
            // Of the first state; of the first batches after a start; and in the middle.
            for passes in ["", "2*off->", "7*off->"] {
                die_at(&mut estate, &mut writer, &format!("{point}={passes}return"), &mut rng).await;
            }
        }
        estate.capture.go().await;
        writer.write_some(&mut rng, 20).await;
        estate.published_is_the_log().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn c51_a_broker_that_is_killed_and_one_that_does_not_answer_lose_and_repeat_nothing() {
        let kafka = Kafka::mortal();
        let mut estate = Estate::start(&kafka, Layout::Tables, &[]).await;
        let mut writer = Writer::new(&estate.postgres);
        writer.run(PEOPLE).await;
        let mut rng = ChaCha8Rng::seed_from_u64(51);
        for is_killed in [true, false, true] {
            writer.write_some(&mut rng, 30).await;
            if is_killed {
                kafka.kill()
            } else {
                kafka.freeze()
            }
            writer.write_some(&mut rng, 30).await;
            let sql = estate.postgres.sql().await;
            let end: String = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
            let end: Lsn = end.parse().unwrap();
            // PostgreSQL keeps nothing for a Kafka that is away: the change log has it.
            let confirmed = async |_: &System| {
                let slot = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'feedmill'";
                let confirmed: String = sql.query_one(slot, &[]).await.unwrap().get(0);
                confirmed.parse::<Lsn>().unwrap() >= end
            };
            estate.capture.until("PostgreSQL may forget it", confirmed).await;
            assert!(stage_lsn(&estate.capture, "kafka").await < Some(end), "it cannot be published");
            let is_named =
                async |capture: &System| capture.get("/health", None).await.body["standsStill"]["stage"] == "kafka";
            estate.capture.until("health names Kafka", is_named).await;
            if is_killed {
                kafka.start_again()
            } else {
                kafka.thaw()
            }
            estate.published().await;
        }
        // A start without Kafka takes what PostgreSQL commits, and publishes it when Kafka is there.
        estate.capture.interrupt();
        kafka.kill();
        writer.write_some(&mut rng, 10).await;
        estate.capture.spawn().await.unwrap();
        let has_failed = async |capture: &System| capture.metric("feedmill_publish_failures_total").await > 0.0;
        estate.capture.until("it could not publish", has_failed).await;
        assert_eq!(estate.capture.get("/ready", None).await.status, 503);
        kafka.start_again();
        estate.published_is_the_log().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_large_transaction_goes_on_where_it_was_cut_short() {
        let mut estate = Estate::start(Kafka::shared(), Layout::Tables, &[]).await;
        let mut writer = Writer::new(&estate.postgres);
        writer.run(PEOPLE).await;
        estate.published().await;
        // More than the change log keeps in one part: four pieces, and more.
        writer
            .run(
                "INSERT INTO accounts (user_id, username) SELECT n, 'u' || n FROM generate_series(201, 66000) AS n;
                 INSERT INTO users (id, username, display_name)
                     SELECT n, 'u' || n, 'User ' || n FROM generate_series(201, 66000) AS n",
            )
            .await;
        estate.published().await;
        estate.anew(Kafka::shared()).await;
        for (round, point) in [
            "publish_commit_after=1*off->return",
            "publish_commit_before=1*off->return",
            "publish_commit_after=1*off->return",
            "publish_commit_before=1*off->return",
        ]
        .into_iter()
        .enumerate()
        {
            if round == 2 {
                // The first state is there: what follows is cut in a batch.
                estate.capture.go().await;
                estate.published().await;
                estate.capture.interrupt();
                writer.run("UPDATE users SET bio = coalesce(bio, '') || 'x', updated_at = now()").await;
                let end: String = estate
                    .postgres
                    .sql()
                    .await
                    .query_one("SELECT pg_current_wal_flush_lsn()::text", &[])
                    .await
                    .unwrap()
                    .get(0);
                let end: Lsn = end.parse().unwrap();
                // It is in the change log, and nothing of it in Kafka.
                estate.capture.failpoints = Some("publish_before=pause".to_owned());
                estate.capture.spawn().await.unwrap();
                let is_logged = async |capture: &System| stage_lsn(capture, "log").await >= Some(end);
                estate.capture.until("the change log has it", is_logged).await;
                estate.capture.kill();
            }
            estate.capture.failpoints = Some(point.to_owned());
            let _ = estate.capture.spawn().await;
            estate.capture.until("it died in the middle", async |capture| !capture.is_running()).await;
            estate.capture.wait();
            estate.capture.failpoints = None;
        }
        estate.capture.go().await;
        writer.run(HUGE[0]).await;
        estate.published_is_the_log().await;
        let log = estate.capture.log();
        assert!(log.contains("th row of the first state") && log.contains("from change "), "{log}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_difference_of_a_resync_is_published_like_any_batch() {
        let mut estate = Estate::start(Kafka::shared(), Layout::Tables, &["--on-mismatch", "resync"]).await;
        let mut writer = Writer::new(&estate.postgres);
        writer.run(PEOPLE).await;
        estate.published().await;
        estate.capture.interrupt();
        writer.run("SELECT pg_drop_replication_slot('feedmill')").await;
        writer.write_some(&mut ChaCha8Rng::seed_from_u64(8), 60).await;
        estate.capture.go().await;
        writer.run("UPDATE users SET bio = 'after' WHERE id < 20").await;
        estate.published_is_the_log().await;
        assert!(estate.capture.log().contains("differences taken over"), "{}", estate.capture.log());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_second_publisher_fences_the_first_which_says_so_and_ends() {
        let mut estate = Estate::start(Kafka::shared(), Layout::Tables, &[]).await;
        Writer::new(&estate.postgres).run(PEOPLE).await;
        estate.published().await;
        let to = estate.to.clone();
        let second = tokio::task::spawn_blocking(move || Publisher::open(&to, &OPTIONS)).await.unwrap().unwrap();
        assert!(second.at().is_some_and(|at| at.last));
        estate.capture.until("the first has ended", async |capture| !capture.is_running()).await;
        let status = estate.capture.wait();
        assert_eq!(status.code(), Some(1), "{}", estate.capture.log());
        let log = estate.capture.log();
        assert!(log.contains("another publisher has taken over") && log.contains("--topic-prefix"), "{log}");
        drop(second);
        // Whoever is started takes over again, and nothing is missing.
        estate.capture.go().await;
        Writer::new(&estate.postgres).write_some(&mut ChaCha8Rng::seed_from_u64(2), 20).await;
        estate.published_is_the_log().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn topics_of_another_database_are_refused_and_their_publisher_goes_on() {
        let mut estate = Estate::start(Kafka::shared(), Layout::Tables, &[]).await;
        Writer::new(&estate.postgres).run(PEOPLE).await;
        estate.published().await;
        let postgres = Postgres::new(&[]).await;
        let other = capture(&postgres, &estate.to, &[]);
        let printed = other.expect_start_failure().await;
        assert!(printed.contains("hold the log of another source") && printed.contains("--topic-prefix"), "{printed}");
        Writer::new(&estate.postgres).write_some(&mut ChaCha8Rng::seed_from_u64(3), 20).await;
        estate.published_is_the_log().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_start_says_what_is_missing_or_wrong() {
        let mut capture = System::new(&[]);
        capture.mode = "capture";
        let printed = capture.expect_start_failure().await;
        assert!(printed.contains("--publish kafka://"), "{printed}");
        capture.settings.extend(["--publish", "one.example:9092"].map(str::to_owned));
        assert!(capture.expect_start_failure().await.contains("it does not begin with kafka://"));
        let estate = Estate::start(Kafka::shared(), Layout::Tables, &[]).await;
        estate.published().await;
        let output = estate.capture.command(&["verify"]).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains("has no views"), "{error}");
        let output = estate.capture.command(&["resync"]).await;
        assert!(output.status.success(), "{output:?}");
        assert_eq!(estate.capture.get("/api/timeline", None).await.status, 404);
        let mut capture = estate.capture;
        capture.interrupt();
        let at = capture.settings.iter().position(|setting| setting == "--topic-partitions").unwrap();
        capture.settings[at + 1] = "5".to_owned();
        let printed = capture.expect_start_failure().await;
        assert!(printed.contains("has 3 partitions, and must have 5"), "{printed}");
    }

    /// Sets settings of topics.
    fn alter(servers: &str, topics: &[&str], settings: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", servers).create().unwrap();
        let altered = topics.iter().map(|topic| {
            let alter = AlterConfig::new(ResourceSpecifier::Topic(topic));
            settings.iter().fold(alter, |alter, (name, value)| alter.set(name, value))
        });
        let altered: Vec<AlterConfig<'_>> = altered.collect();
        for altered in block_on(admin.alter_configs(&altered, &AdminOptions::new())).unwrap() {
            altered.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rows_as_of_a_time_survive_compaction() {
        let kafka = Kafka::mortal();
        let mut estate = Estate::start(&kafka, Layout::Tables, &[]).await;
        let topics = Topics::of(&estate.to);
        let rows: Vec<&str> = topics.rows().collect();
        let eager = [
            ("cleanup.policy", "compact"),
            ("message.timestamp.type", "CreateTime"),
            ("segment.ms", "200"),
            ("min.cleanable.dirty.ratio", "0.001"),
            ("delete.retention.ms", "0"),
            ("max.compaction.lag.ms", "200"),
        ];
        alter(&kafka.bootstrap(), &rows, &eager);
        let mut writer = Writer::new(&estate.postgres);
        writer.run(PEOPLE).await;
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let name = format!("{}.public.users.rows", estate.to.prefix);
        let is_compacted = async |_: &System| {
            writer.write_some(&mut rng, 5).await;
            writer.run("UPDATE users SET bio = coalesce(bio, '') || 'x' WHERE id < 100").await;
            let users = records(&kafka.bootstrap(), [name.as_str()].into_iter()).await;
            let last = users[&name].iter().map(|record| record.offset).max().unwrap_or(0) * 2;
            // Of an offset in two at most a record is left.
            last > 4_000 && users[&name].len() < usize::try_from(last).unwrap() / 2
        };
        estate.capture.until("compaction has removed most", is_compacted).await;
        estate.published_is_the_log().await;
    }

    /// Removes all records of a partition.
    fn remove_records(servers: &str, topic: &str, partition: i32) {
        let (_, end) = plain::consumer(servers).fetch_watermarks(topic, partition, Duration::from_secs(10)).unwrap();
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", servers).create().unwrap();
        let mut before = TopicPartitionList::new();
        before.add_partition_offset(topic, partition, Offset::Offset(end)).unwrap();
        block_on(admin.delete_records(&before, &AdminOptions::new())).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_not_retained_any_more_is_told_and_what_mends_it() {
        let estate = Estate::start(Kafka::shared(), Layout::Tables, &[]).await;
        let mut writer = Writer::new(&estate.postgres);
        estate.published().await;
        let to = estate.to.clone();
        let begin = tokio::task::spawn_blocking(move || Times::of(&to).unwrap().newest().unwrap()).await.unwrap();
        writer.run(PEOPLE).await;
        estate.published().await;
        let to = estate.to.clone();
        tokio::task::spawn_blocking(move || {
            let servers = to.servers.to_string();
            let read = |after| {
                let mut reader = BatchReader::open(&to, Share::ALL, after)?;
                let newest = Times::of(&to)?.newest()?.time;
                loop {
                    let batch = reader.next(Duration::from_secs(30))?.expect("it is there, or its end is told");
                    if batch.position.time >= newest {
                        return Ok::<_, KafkaError>(());
                    }
                }
            };
            read(begin.time).unwrap();
            let beyond = BatchReader::open(&to, Share::ALL, u64::MAX / 2).err().unwrap();
            assert!(matches!(beyond, KafkaError::Beyond { .. }), "{beyond}");
            // Before the first state nothing was published.
            let early = read(begin.time.saturating_sub(3_600_000)).unwrap_err();
            assert!(matches!(early, KafkaError::Gone { .. }), "{early}");
            remove_records(&servers, &format!("{}.public.users", to.prefix), 1);
            let hydrated = || Hydration::begin(&to, Share::ALL, begin.time).unwrap().find_map(Result::err);
            for error in [read(begin.time).unwrap_err(), hydrated().unwrap()] {
                assert!(matches!(error, KafkaError::Gone { .. }) && !error.is_transient(), "{error}");
                assert!(error.to_string().contains("feedmill replay"), "{error}");
            }
            remove_records(&servers, &format!("{}.times", to.prefix), 0);
            // A tick comes every second; until then nothing is known.
            let deadline = Instant::now() + Duration::from_secs(60);
            while Times::of(&to).unwrap().newest().is_err() {
                assert!(Instant::now() < deadline, "no tick comes");
            }
            let error = read(begin.time).unwrap_err();
            assert!(matches!(error, KafkaError::Gone { .. }), "{error}");
        })
        .await
        .unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_publisher_did_not_commit_is_seen_by_nobody() {
        let to = log_in(Kafka::shared(), Layout::Tables);
        tokio::task::spawn_blocking(move || {
            feedmill_connectors::kafka::prepare(&to, &OPTIONS).unwrap();
            let source = SourceId { system: 1, timeline: 1, slot: "feedmill".to_owned() };
            let origin = Origin { source: &source, history: 0, greatest_entry: 0 };
            let part = |time| Part {
                position: Position { time, lsn: Lsn(time) },
                floor: None,
                content: Content::Rows(&[]),
                last: true,
            };
            let newest = || Times::of(&to).unwrap().newest();
            assert!(matches!(newest(), Err(KafkaError::NotReady { .. })));
            let mut first = Publisher::open(&to, &OPTIONS).unwrap();
            assert!(first.at().is_none());
            // A commit is acknowledged before it has reached all partitions.
            let until_newest = |time| {
                let deadline = Instant::now() + LIMIT;
                while newest().map_or(0, |newest| newest.time) != time {
                    assert!(Instant::now() < deadline, "the newest is {:?}, and not {time}", newest());
                }
            };
            let publish = |publisher: &mut Publisher, time| {
                let (mut encoder, encoded) = Encoder::new(&to, "social", publisher.at()).unwrap();
                assert!(encoder.write(origin, &[part(time)]).unwrap());
                publisher.publish(&encoded, LIMIT)
            };
            assert_eq!(publish(&mut first, 1_000).unwrap(), Published::Changes(0));
            until_newest(1_000);
            let mut second = Publisher::open(&to, &OPTIONS).unwrap();
            assert_eq!(second.at().unwrap().time, 1_000);
            let fenced = publish(&mut first, 2_000).unwrap_err();
            assert!(matches!(fenced, KafkaError::Fenced { .. }) && !fenced.is_transient(), "{fenced}");
            assert_eq!(newest().unwrap().time, 1_000);
            publish(&mut second, 3_000).unwrap();
            until_newest(3_000);
            let record = newest().unwrap();
            assert_eq!((record.time, record.previous), (3_000, Some(1_000)));
        })
        .await
        .unwrap();
    }
}
