package matrix;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/**
 * The contract of ../README.md for Java: settings, units of work, the report. It knows no driver.
 * Next on the path: Pgjdbc.java.
 */
public final class Main {
    static final int STATEMENTS = 10;
    static final int TURNS = 7;
    static final int TEXTS = 3;
    static final int ROWS = 100;
    static final int BESIDE = 5;
    private static final int ERRORS_SHOWN = 5;
    private static final int SLEEPER_EVERY = 5;
    private static final int STEP_WITHIN_S = 60;
    private static final List<String> STEPS =
            List.of("connect", "prepared", "pipeline", "copy", "transaction", "error", "cancel");

    private Main() {}

    /** What one client does in one round; the tag is in all that it writes or reads. */
    @FunctionalInterface
    interface Unit {
        void run(int tag) throws Exception;
    }

    /** A pool that is open for one step, with the step's work; closed when the step is over. */
    interface Opened extends AutoCloseable {
        /** The work of each step by name, and {@code beside}, which runs next to a cancel. */
        Map<String, Unit> work();

        @Override
        void close();
    }

    /** What to connect to in one step. */
    record Where(String host, String port, String user, String password, String database) {
        static Where of(String step) {
            Map<String, String> given = System.getenv();
            return new Where(
                    given.get("PGHOST"),
                    given.get("PGPORT"),
                    given.get("PGUSER"),
                    given.get("PGPASSWORD"),
                    given.get("PGDATABASE") + "_" + step);
        }

        String url() {
            return "jdbc:postgresql://" + host + ":" + port + "/" + database;
        }
    }

    /** Fails unless two results are the same by value. */
    static void expect(Object got, Object wanted) {
        if (!Objects.equals(got, wanted)) {
            String text = "wrong result: " + got + " instead of " + wanted;
            throw new IllegalStateException(text.substring(0, Math.min(300, text.length())));
        }
    }

    /** The rows of the step {@code copy} in COPY's text format. */
    static String copyText(int tag) {
        StringBuilder text = new StringBuilder();
        for (int n = 0; n < ROWS; n++) {
            text.append("%d\t%d\tnote %d %d%n".formatted(tag, n, tag, n));
        }
        return text.toString();
    }

    /** Counts units that went well and collects what did not. */
    private static final class Tally {
        private int done;
        private final List<String> failed = new ArrayList<>();

        void run(Unit unit, int tag) {
            try {
                unit.run(tag);
                succeed();
            } catch (Exception error) {
                fail(error.toString());
            }
        }

        synchronized void succeed() {
            done += 1;
        }

        synchronized void fail(String error) {
            failed.add(error);
        }

        synchronized void report(String step, long begunNs) {
            int more = failed.size() - ERRORS_SHOWN;
            int first = Math.min(failed.size(), ERRORS_SHOWN);
            List<String> shown = new ArrayList<>(failed.subList(0, first));
            if (more > 0) {
                shown.add("and " + more + " more");
            }
            String errors = String.join(", ", shown.stream().map(Main::quoted).toList());
            double seconds = (System.nanoTime() - begunNs) / 1e9;
            System.out.printf(
                    "{\"step\": %s, \"done\": %d, \"errors\": [%s], \"seconds\": %.2f}%n",
                    quoted(step), done, errors, seconds);
        }
    }

    /** Writes a text as JSON. */
    private static String quoted(String text) {
        StringBuilder json = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') {
                json.append('\\').append(c);
            } else {
                json.append(c < ' ' ? ' ' : c);
            }
        }
        return json.append('"').toString();
    }

    private static int number(String name, int otherwise) {
        String given = System.getenv(name);
        return given == null ? otherwise : Integer.parseInt(given);
    }

    private static void step(String step) throws InterruptedException {
        int clients = number("DRIVER_CLIENTS", 50);
        int rounds = number("DRIVER_ROUNDS", 2);
        long begunNs = System.nanoTime();
        Tally tally = new Tally();
        try (Opened opened = Pgjdbc.open(Where.of(step), step, clients)) {
            ExecutorService threads = Executors.newFixedThreadPool(clients);
            for (int n = 0; n < clients; n++) {
                int client = n;
                boolean beside = step.equals("cancel") && client % SLEEPER_EVERY != 0;
                Unit work = opened.work().get(beside ? "beside" : step);
                threads.execute(() -> {
                    for (int round = 0; round < rounds; round++) {
                        tally.run(work, client * 1000 + round);
                    }
                });
            }
            threads.shutdown();
            if (!threads.awaitTermination(STEP_WITHIN_S, TimeUnit.SECONDS)) {
                tally.fail("the step did not end within " + STEP_WITHIN_S + " s");
                threads.shutdownNow();
            }
        }
        tally.report(step, begunNs);
    }

    /** Runs all steps. */
    public static void main(String[] arguments) throws InterruptedException {
        System.out.printf(
                "{\"driver\": \"pgjdbc\", \"version\": %s, \"pool\": %s}%n",
                quoted(Pgjdbc.version()), quoted(Pgjdbc.pool()));
        for (String step : STEPS) {
            String reason = Pgjdbc.UNSUPPORTED.get(step);
            if (reason == null) {
                step(step);
            } else {
                System.out.printf(
                        "{\"step\": %s, \"unsupported\": %s}%n", quoted(step), quoted(reason));
            }
        }
    }
}
