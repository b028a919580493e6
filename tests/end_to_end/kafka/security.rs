//! Brokers that let nobody in who does not sign in, by TLS.

mod servers {
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use feedmill_connectors::kafka::{
        BatchReader, Compression, Content, Encoder, Format, KafkaError, KafkaLog, Layout, Origin, Part, Published,
        Publisher, Share, Times, TopicOptions, prepare,
    };
    use feedmill_model::{Change, Lsn, Popular, Position, Row, SourceId};
    use feedmill_test_servers::{Cassandra, Elasticsearch, SecureKafka};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use crate::certificates::{Authority, file};
    use crate::crash::workload::{PEOPLE, Writer};
    use crate::kafka::estate::{self, Estate};
    use crate::postgres::Postgres;
    use crate::servers::processes::Processes;
    use crate::system::{LIMIT, System};

    const OPTIONS: TopicOptions = TopicOptions {
        partitions: 1,
        replication: 1,
        retention: Duration::from_secs(3_600),
        compression: Compression::Zstd,
    };
    /// As an address has them.
    const USER: &str = SecureKafka::USER;
    const PASSWORD: &str = "Br%40ker%2Fs3cret%3F12";

    fn log(address: &str, prefix: &str) -> KafkaLog {
        let (prefix, format) = (prefix.to_owned(), Format::Json);
        KafkaLog { servers: address.parse().unwrap(), prefix, layout: Layout::Tables, format, registry: None }
    }

    /// The broker, and the file of the authority that has signed its certificate.
    fn broker(folder: &Path) -> (SecureKafka, PathBuf) {
        let kafka = SecureKafka::start();
        let authority = file(folder, "authority.pem", kafka.authority());
        (kafka, authority)
    }

    /// Publishes a batch, and reads it.
    fn publish_and_read(to: &KafkaLog) -> Result<(), KafkaError> {
        prepare(to, &OPTIONS)?;
        let mut publisher = Publisher::open(to, &OPTIONS)?;
        let (mut encoder, encoded) = Encoder::new(to, "social", publisher.at())?;
        let source = SourceId { system: 1, timeline: 1, slot: "feedmill".to_owned() };
        let origin = Origin { source: &source, history: 0, greatest_entry: 0 };
        let change = Change { old: None, new: Some(Row::Popular(Popular { user_id: 7 })) };
        let changes = [change];
        for (time, content) in [(1_000, Content::Rows(&[])), (2_000, Content::Changes(&changes))] {
            let position = Position { time, lsn: Lsn(time) };
            assert!(encoder.write(origin, &[Part { position, floor: None, content, last: true }])?);
            assert!(matches!(publisher.publish(&encoded, LIMIT)?, Published::Changes(_)));
        }
        let deadline = std::time::Instant::now() + LIMIT;
        // A commit is acknowledged before it has reached all partitions.
        while Times::of(to)?.newest()?.time < 2_000 {
            assert!(std::time::Instant::now() < deadline, "what was published is not there");
        }
        let batch = BatchReader::open(to, Share::ALL, 1_000)?.next(LIMIT)?.expect("it is there");
        assert_eq!(batch.changes, changes);
        Ok(())
    }

    #[test]
    fn every_way_to_sign_in_and_every_wrong_one() {
        let folder = tempfile::tempdir().unwrap();
        let (kafka, authority) = broker(folder.path());
        let other = file(folder.path(), "other.pem", &Authority::new().certificate);
        let (users, anybody) = (kafka.bootstrap(), kafka.bootstrap_for_anybody());
        let (authority, other) = (authority.display(), other.display());
        for (number, address) in [
            format!("kafka://{USER}:{PASSWORD}@{users}?tls={authority}"),
            format!("kafka://{USER}:{PASSWORD}@{users}?tls={authority}&sasl=scram-sha-256"),
            format!("kafka://{USER}:{PASSWORD}@{users}?tls={authority}&sasl=plain"),
            format!("kafka://{anybody}?tls={authority}"),
        ]
        .iter()
        .enumerate()
        {
            publish_and_read(&log(address, &format!("way{number}")))
                .unwrap_or_else(|error| panic!("{address}: {error}"));
        }
        for (address, why) in [
            (format!("kafka://{USER}:wr0ng@{users}?tls={authority}"), "uthentication failed"),
            (format!("kafka://{USER}:wr0ng@{users}?tls={authority}&sasl=plain"), "uthentication failed"),
            (format!("kafka://nobody:{PASSWORD}@{users}?tls={authority}"), "uthentication failed"),
            (format!("kafka://{USER}:{PASSWORD}@{users}?tls={other}"), "certificate could not be verified"),
            (format!("kafka://{anybody}?tls=system"), "certificate could not be verified"),
            (format!("kafka://{}?tls={authority}", anybody.replace("localhost", "127.0.0.1")), "certificate"),
        ] {
            let error = prepare(&log(&address, "wrong"), &OPTIONS).expect_err(&address);
            assert!(matches!(error, KafkaError::Denied { .. }) && !error.is_transient(), "{address}: {error}");
            let told = error.to_string();
            assert!(told.contains(why) && told.contains("--publish"), "{address}: {told}");
            assert!(!told.contains("wr0ng") && !told.contains("s3cret"), "{address}: {told}");
        }
        let no_file = log(&format!("kafka://{anybody}?tls=/no/such/file.pem"), "wrong");
        let error = prepare(&no_file, &OPTIONS).unwrap_err();
        assert!(matches!(error, KafkaError::Settings { .. }) && !error.is_transient(), "{error}");
        assert!(error.to_string().contains("/no/such/file.pem"), "{error}");
    }

    /// Gives the address by the variable, as one does who keeps it from the list of processes.
    fn by_variable(system: &mut System, address: &str) {
        if let Some(at) = system.settings.iter().position(|setting| setting == "--publish") {
            system.settings.drain(at..at + 2);
        }
        system.variables.push(("FEEDMILL_PUBLISH".to_owned(), address.to_owned()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn capture_and_run_sign_in_and_c60_tell_the_password_to_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let (kafka, authority) = broker(folder.path());
        let address =
            |password: &str| format!("kafka://{USER}:{password}@{}?tls={}", kafka.bootstrap(), authority.display());
        let postgres = Postgres::new(&[]).await;
        let to = log(&address(PASSWORD), "secured");
        let level = ["--log", "trace", "--topic-compression", "zstd"];
        let mut capture = estate::capture(&postgres, &to, &level);
        by_variable(&mut capture, &address("wr0ng"));
        let printed = capture.expect_start_failure().await;
        assert!(printed.contains("does not let this process in") && printed.contains("--publish"), "{printed}");
        assert!(!printed.contains("wr0ng"), "{printed}");
        by_variable(&mut capture, &address(PASSWORD));
        capture.go().await;
        let estate = Estate { postgres, capture, to };
        let mut writer = Writer::new(&estate.postgres);
        writer.run(PEOPLE).await;
        writer.write_some(&mut ChaCha8Rng::seed_from_u64(6), 20).await;
        estate.published().await;

        let (node, search) = (Cassandra::shared(), Elasticsearch::shared());
        let mut processes = Processes::on(node, search, &estate.to, &estate.postgres, "secured");
        processes.are(1, 1);
        let process = &mut processes.all[0];
        process.settings.extend(level[..2].iter().map(|setting| (*setting).to_owned()));
        by_variable(process, &address("wr0ng"));
        let printed = process.expect_start_failure().await;
        assert!(printed.contains("does not let this process in") && !printed.contains("wr0ng"), "{printed}");
        by_variable(process, &address(PASSWORD));
        processes.go().await;
        processes.caught_up(&estate.to).await;

        for system in [&estate.capture, &processes.all[0]] {
            let health = system.get("/health", None).await.body.to_string();
            let config = system.command(&["config"]).await;
            let config = String::from_utf8(config.stdout).unwrap();
            assert!(config.contains(&format!("kafka://{USER}@{}", kafka.bootstrap())), "{config}");
            let line = std::fs::read_to_string(format!("/proc/{}/cmdline", system.pid())).unwrap();
            let log = system.log();
            assert!(log.contains("TRACE"), "everything is logged that can be");
            for (what, text) in [("health", health), ("config", config), ("log", log), ("command line", line)] {
                for secret in [PASSWORD, SecureKafka::PASSWORD] {
                    assert!(!text.contains(secret), "the password is in the {what}");
                }
            }
        }
        processes.stop();
    }
}
