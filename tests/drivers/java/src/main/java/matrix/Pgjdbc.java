package matrix;

import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.io.IOException;
import java.io.InputStream;
import java.io.StringReader;
import java.io.StringWriter;
import java.io.UncheckedIOException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import matrix.Main.Opened;
import matrix.Main.Unit;
import matrix.Main.Where;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

/** pgjdbc with HikariCP, each as it is by default; the pool has room for all clients. */
final class Pgjdbc implements Opened {
    static final Map<String, String> UNSUPPORTED = Map.of();
    private static final long CUT_AFTER_MS = 300;
    private static final long CUT_AGAIN_MS = 2000;
    private static final long CUT_WITHIN_NS = 10_000_000_000L;
    private static final String DIVISION = "22012";
    private static final String FAILED_BLOCK = "25P02";
    private static final String CANCELLED = "57014";

    private final Where where;
    private final HikariDataSource pool;
    private final ExecutorService cancellers = Executors.newCachedThreadPool();

    private Pgjdbc(Where where, HikariDataSource pool) {
        this.where = where;
        this.pool = pool;
    }

    static String version() {
        return org.postgresql.util.DriverInfo.DRIVER_VERSION;
    }

    static String pool() {
        Properties made = new Properties();
        String file = "/META-INF/maven/com.zaxxer/HikariCP/pom.properties";
        try (InputStream in = HikariDataSource.class.getResourceAsStream(file)) {
            made.load(in);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        return "HikariCP " + made.getProperty("version");
    }

    /** Opens the pool of a step; {@code connect} works without one. */
    static Opened open(Where where, String step, int clients) {
        if (step.equals("connect")) {
            return new Pgjdbc(where, null);
        }
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl(where.url());
        config.setUsername(where.user());
        config.setPassword(where.password());
        config.setMaximumPoolSize(clients);
        return new Pgjdbc(where, new HikariDataSource(config));
    }

    @Override
    public void close() {
        cancellers.shutdownNow();
        if (pool != null) {
            pool.close();
        }
    }

    @Override
    public Map<String, Unit> work() {
        return Map.of(
                "connect", this::connect,
                "prepared", this::prepared,
                "pipeline", this::pipeline,
                "copy", this::copy,
                "transaction", this::transaction,
                "error", this::error,
                "cancel", this::cancel,
                "beside", this::beside);
    }

    private static void value(Connection connection, int tag) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement("SELECT ?::int")) {
            statement.setInt(1, tag);
            try (ResultSet rows = statement.executeQuery()) {
                Main.expect(rows.next(), true);
                Main.expect(rows.getInt(1), tag);
            }
        }
    }

    private void connect(int tag) throws SQLException {
        try (Connection own =
                DriverManager.getConnection(where.url(), where.user(), where.password())) {
            value(own, tag);
        }
    }

    /** Repeats statements; pgjdbc makes each a named one with its fifth run. */
    private void prepared(int tag) throws SQLException {
        try (Connection connection = pool.getConnection()) {
            for (int turn = 0; turn < Main.TURNS; turn++) {
                for (int text = 0; text < Main.TEXTS; text++) {
                    String sql = "SELECT ?::int, 'text " + text + "'";
                    try (PreparedStatement statement = connection.prepareStatement(sql)) {
                        statement.setInt(1, tag * 100 + turn);
                        try (ResultSet rows = statement.executeQuery()) {
                            Main.expect(rows.next(), true);
                            Main.expect(rows.getInt(1), tag * 100 + turn);
                            Main.expect(rows.getString(2), "text " + text);
                        }
                    }
                }
            }
        }
    }

    /** A batch, which pgjdbc sends whole before it reads; its rows come back by RETURNING. */
    private void pipeline(int tag) throws SQLException {
        try (Connection connection = pool.getConnection();
                PreparedStatement statement =
                        connection.prepareStatement(
                                "INSERT INTO kept VALUES (?, 'batch')",
                                Statement.RETURN_GENERATED_KEYS)) {
            List<Integer> wanted = new ArrayList<>();
            for (int n = 0; n < Main.STATEMENTS; n++) {
                wanted.add(tag * 100 + n);
                statement.setInt(1, tag * 100 + n);
                statement.addBatch();
            }
            Main.expect(statement.executeBatch().length, Main.STATEMENTS);
            List<Integer> got = new ArrayList<>();
            try (ResultSet rows = statement.getGeneratedKeys()) {
                while (rows.next()) {
                    got.add(rows.getInt(1));
                }
            }
            Main.expect(got, wanted);
        }
    }

    private void copy(int tag) throws Exception {
        try (Connection connection = pool.getConnection()) {
            CopyManager manager = connection.unwrap(PGConnection.class).getCopyAPI();
            manager.copyIn("COPY copied FROM STDIN", new StringReader(Main.copyText(tag)));
            StringWriter out = new StringWriter();
            String query = "SELECT tag, n, note FROM copied WHERE tag = " + tag + " ORDER BY n";
            manager.copyOut("COPY (" + query + ") TO STDOUT", out);
            Main.expect(out.toString(), Main.copyText(tag));
        }
    }

    private static void keep(Connection connection, int tag, String part) throws SQLException {
        try (PreparedStatement statement =
                connection.prepareStatement("INSERT INTO kept VALUES (?, ?)")) {
            statement.setInt(1, tag);
            statement.setString(2, part);
            Main.expect(statement.executeUpdate(), 1);
        }
    }

    private void transaction(int tag) throws SQLException {
        try (Connection connection = pool.getConnection()) {
            connection.setAutoCommit(false);
            keep(connection, tag, "committed");
            connection.commit();
            keep(connection, tag, "rolled back");
            connection.rollback();
            keep(connection, tag, "outer");
            Savepoint here = connection.setSavepoint();
            keep(connection, tag, "inner");
            connection.rollback(here);
            connection.commit();
            List<String> parts = new ArrayList<>();
            String query = "SELECT part FROM kept WHERE tag = " + tag + " ORDER BY part";
            try (Statement statement = connection.createStatement();
                    ResultSet rows = statement.executeQuery(query)) {
                while (rows.next()) {
                    parts.add(rows.getString(1));
                }
            }
            connection.commit();
            Main.expect(parts, List.of("committed", "outer"));
        }
    }

    /** Work that shall fail. */
    @FunctionalInterface
    private interface Failing {
        void run() throws SQLException;
    }

    private static void expectError(Failing work, String sqlstate) {
        String state = "no error";
        try {
            work.run();
        } catch (SQLException error) {
            state = error.getSQLState();
        }
        Main.expect(state, sqlstate);
    }

    private static void divide(Connection connection) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement("SELECT 1 / ?::int")) {
            statement.setInt(1, 0);
            statement.executeQuery();
        }
    }

    private void error(int tag) throws SQLException {
        try (Connection connection = pool.getConnection()) {
            expectError(() -> divide(connection), DIVISION);
            value(connection, tag);
            connection.setAutoCommit(false);
            value(connection, tag);
            expectError(() -> divide(connection), DIVISION);
            expectError(() -> value(connection, tag), FAILED_BLOCK);
            connection.rollback();
            value(connection, tag);
            connection.commit();
        }
    }

    /** Cancels, again if the statement goes on: the first may have come before it began. */
    private static Void cutOff(Statement statement, CountDownLatch ended) throws Exception {
        long pauseMs = CUT_AFTER_MS;
        while (!ended.await(pauseMs, TimeUnit.MILLISECONDS)) {
            statement.cancel();
            pauseMs = CUT_AGAIN_MS;
        }
        return null;
    }

    /** Is cut off by {@code Statement.cancel}, which opens a connection for the request. */
    private void cancel(int tag) throws Exception {
        long begunNs = System.nanoTime();
        try (Connection connection = pool.getConnection();
                Statement statement = connection.createStatement()) {
            CountDownLatch ended = new CountDownLatch(1);
            Future<?> canceller = cancellers.submit(() -> cutOff(statement, ended));
            try {
                expectError(() -> statement.executeQuery("SELECT pg_sleep(30)"), CANCELLED);
            } finally {
                ended.countDown();
                canceller.get(1, TimeUnit.MINUTES);
            }
            Main.expect(System.nanoTime() - begunNs < CUT_WITHIN_NS, true);
            value(connection, tag);
        }
    }

    private void beside(int tag) throws SQLException {
        for (int turn = 0; turn < Main.BESIDE; turn++) {
            try (Connection connection = pool.getConnection()) {
                value(connection, tag);
            }
        }
    }
}
