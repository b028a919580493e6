//! What a server of a test leaves behind: nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod servers {
    use std::net::TcpStream;
    use std::path::PathBuf;

    use feedmill_test_servers::Kafka;

    /// The folders of servers that this process has started.
    fn folders() -> Vec<PathBuf> {
        let files = std::fs::read_dir(std::env::temp_dir()).unwrap().map(|file| file.unwrap().path());
        files.filter(|path| path.to_string_lossy().contains("/feedmill-server-")).collect()
    }

    #[test]
    fn a_server_is_killed_starts_again_and_leaves_nothing() {
        let before = folders();
        let server = Kafka::start();
        let address = server.bootstrap();
        assert!(TcpStream::connect(&address).is_ok());
        server.kill();
        assert!(TcpStream::connect(&address).is_err());
        server.start_again();
        assert!(TcpStream::connect(&address).is_ok());
        let own = || folders().into_iter().filter(|folder| !before.contains(folder)).collect::<Vec<_>>();
        assert_eq!(own().len(), 1);
        drop(server);
        assert!(TcpStream::connect(&address).is_err());
        assert_eq!(own(), Vec::<PathBuf>::new());
    }
}
