import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.lang.ref.Reference;
import java.net.Socket;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Deque;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.stream.Stream;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.recipes.leader.LeaderLatch;
import org.apache.curator.retry.RetryOneTime;
import org.apache.zookeeper.data.Stat;

/** What elections of Curator's LeaderLatch cost. */
public class Bench {
    static final int QUIET = 150;
    static final int SOON = 15;
    static final int TIMEOUT = 30_000;
    static final int IDLE_TIMEOUT = 5_000;

    /** All elections of this run are below it. */
    static final String ROOT = "/peers-curator-" + Long.toHexString(System.nanoTime());

    static final ExecutorService THREADS = Executors.newCachedThreadPool();

    static String endpoint = "127.0.0.1:2181";
    static boolean quick = false;
    static String only = "";

    public static void main(String[] args) throws Exception {
        for (int i = 0; i < args.length; i++) {
            switch (args[i]) {
                case "--endpoint" -> endpoint = args[++i];
                case "--quick" -> quick = true;
                case "--only" -> only = args[++i];
                default -> throw new IllegalArgumentException(args[i]);
            }
        }
        warmUp();
        if (wants("campaign, session held")) {
            held(rounds(300));
        }
        if (wants("campaign from nothing")) {
            fromNothing(rounds(300));
        }
        handover("handover, 2 candidates", 2, QUIET);
        handover("handover, 2 candidates, soon", 2, SOON);
        handover("handover, 50 candidates", 50, QUIET);
        many(rounds(1_000));
        idle();
        try (CuratorFramework client = connect(TIMEOUT)) {
            client.delete().quietly().deletingChildrenIfNeeded().forPath(ROOT);
        }
        THREADS.shutdown();
    }

    /** Until most of it has been compiled. */
    static void warmUp() throws Exception {
        try (CuratorFramework client = connect(TIMEOUT)) {
            for (int n = 0; n < 100; n++) {
                lead(client, "warm").close();
            }
        }
    }

    static void held(int rounds) throws Exception {
        List<Long> times = new ArrayList<>();
        try (CuratorFramework client = connect(TIMEOUT)) {
            lead(client, "warm").close();
            for (int round = 0; round < rounds; round++) {
                long begun = System.nanoTime();
                LeaderLatch latch = lead(client, "held");
                times.add(System.nanoTime() - begun);
                latch.close();
            }
        }
        tellTimes("campaign, session held", times);
    }

    static void fromNothing(int rounds) throws Exception {
        List<Long> times = new ArrayList<>();
        for (int round = 0; round < rounds; round++) {
            long begun = System.nanoTime();
            CuratorFramework client = connect(TIMEOUT);
            LeaderLatch latch = lead(client, "nothing");
            times.add(System.nanoTime() - begun);
            latch.close();
            client.close();
        }
        tellTimes("campaign from nothing", times);
    }

    /** A candidate, and when it came to lead. */
    record Waiting(CuratorFramework client, LeaderLatch latch, CompletableFuture<Long> led) {
        static Waiting stand(CuratorFramework client, String election) throws Exception {
            LeaderLatch latch = new LeaderLatch(client, path(election), "candidate");
            latch.start();
            return new Waiting(client, latch, CompletableFuture.supplyAsync(() -> {
                try {
                    latch.await();
                    return System.nanoTime();
                } catch (Exception error) {
                    throw new CompletionException(error);
                }
            }, THREADS));
        }

        void leave() throws IOException {
            latch.close();
            client.close();
        }
    }

    static void handover(String measure, int candidates, int quiet) throws Exception {
        if (!wants(measure)) {
            return;
        }
        String election = "over-" + candidates + "-" + quiet;
        List<Long> times = new ArrayList<>();
        Deque<Waiting> queue = new ArrayDeque<>();
        try (CuratorFramework looks = connect(TIMEOUT)) {
            for (int count = 1; count <= candidates; count++) {
                queue.add(Waiting.stand(connect(TIMEOUT), election));
                untilEntered(looks, election, count);
            }
            queue.peek().led.join();
            for (int round = 0; round < rounds(100); round++) {
                Thread.sleep(quiet);
                Waiting leads = queue.remove();
                long begun = System.nanoTime();
                leads.latch.close();
                times.add(queue.peek().led.join() - begun);
                // The one that resigned stands again, as the last.
                queue.add(Waiting.stand(leads.client, election));
                untilEntered(looks, election, candidates);
            }
            while (!queue.isEmpty()) {
                queue.removeLast().leave();
            }
        }
        tellTimes(measure, times);
    }

    static void many(int count) throws Exception {
        String leads = "many: lead " + count + ", each";
        String holds = "many: memory of one of " + count + " held, bytes";
        String waits = "many: memory of one of " + count + " waiting, bytes";
        String takeOver = "many: take over " + count + ", each";
        if (Stream.of(leads, holds, waits, takeOver).noneMatch(Bench::wants)) {
            return;
        }
        CuratorFramework holder = connect(TIMEOUT);
        lead(holder, "many-warm");
        double before = memory();
        long begun = System.nanoTime();
        List<LeaderLatch> held = startMany(holder, count);
        for (LeaderLatch latch : held) {
            latch.await();
        }
        tell(leads, 1, (System.nanoTime() - begun) / 1e3 / count);
        tell(holds, 1, Math.max(memory() - before, 0) / count);

        CuratorFramework other = connect(TIMEOUT);
        lead(other, "many-warm-2").close();
        before = memory();
        List<LeaderLatch> waiting = startMany(other, count);
        for (int n = 0; n < count; n++) {
            untilEntered(other, "many-" + n, 2);
        }
        Thread.sleep(2_000);
        tell(waits, 1, Math.max(memory() - before, 0) / count);

        begun = System.nanoTime();
        holder.close();
        for (LeaderLatch latch : waiting) {
            latch.await();
        }
        tell(takeOver, 1, (System.nanoTime() - begun) / 1e3 / count);
        other.close();
        Reference.reachabilityFence(held);
    }

    static List<LeaderLatch> startMany(CuratorFramework client, int count) throws Exception {
        List<LeaderLatch> latches = new ArrayList<>(count);
        for (int n = 0; n < count; n++) {
            LeaderLatch latch = new LeaderLatch(client, path("many-" + n), "candidate");
            latch.start();
            latches.add(latch);
        }
        return latches;
    }

    static void idle() throws Exception {
        String measure = "idle: requests a second of a leader and ten followers, TTL 5 s";
        if (!wants(measure)) {
            return;
        }
        Deque<Waiting> queue = new ArrayDeque<>();
        try (CuratorFramework looks = connect(TIMEOUT)) {
            for (int count = 1; count <= 11; count++) {
                queue.add(Waiting.stand(connect(IDLE_TIMEOUT), "idle"));
                untilEntered(looks, "idle", count);
            }
        }
        Thread.sleep(IDLE_TIMEOUT);
        int span = quick ? 10 : 60;
        long before = requests();
        Thread.sleep(span * 1_000L);
        double asked = (requests() - before) / (double) span;
        while (!queue.isEmpty()) {
            queue.removeLast().leave();
        }
        tell(measure, 1, asked);
    }

    static CuratorFramework connect(int timeout) {
        CuratorFramework client = CuratorFrameworkFactory.newClient(endpoint, timeout, 5_000, new RetryOneTime(100));
        client.start();
        return client;
    }

    static LeaderLatch lead(CuratorFramework client, String election) throws Exception {
        LeaderLatch latch = new LeaderLatch(client, path(election), "candidate");
        latch.start();
        latch.await();
        return latch;
    }

    static String path(String election) {
        return ROOT + "/" + election;
    }

    static void untilEntered(CuratorFramework client, String election, int count) throws Exception {
        while (true) {
            Stat stat = client.checkExists().forPath(path(election));
            if (stat != null && stat.getNumChildren() >= count) {
                return;
            }
            Thread.sleep(2);
        }
    }

    /** What lives on the heap. */
    static double memory() throws InterruptedException {
        Thread.sleep(1_000);
        System.gc();
        System.gc();
        return Runtime.getRuntime().totalMemory() - Runtime.getRuntime().freeMemory();
    }

    /** How many packets ZooKeeper has received. */
    static long requests() throws IOException {
        long sum = 0;
        for (String server : endpoint.split(",")) {
            sum += requestsOf(server);
        }
        return sum;
    }

    static long requestsOf(String address) throws IOException {
        int colon = address.lastIndexOf(':');
        try (Socket server = new Socket(address.substring(0, colon), Integer.parseInt(address.substring(colon + 1)))) {
            server.getOutputStream().write("srvr".getBytes());
            var lines = new BufferedReader(new InputStreamReader(server.getInputStream())).lines();
            String line = lines.filter(it -> it.startsWith("Received: ")).findFirst().orElseThrow();
            return Long.parseLong(line.substring("Received: ".length()));
        }
    }

    static boolean wants(String measure) {
        return measure.contains(only);
    }

    static int rounds(int all) {
        return quick ? Math.max(all / 10, 5) : all;
    }

    static void tellTimes(String measure, List<Long> times) {
        Collections.sort(times);
        double[] at = Stream.of(0.5, 0.99)
                .mapToDouble(share -> times.get((int) Math.round((times.size() - 1) * share)) / 1e3)
                .toArray();
        tell(measure, times.size(), at);
    }

    /** Prints the median and the 99th percentile, or the one value that there is. */
    static void tell(String measure, int rounds, double... values) {
        if (wants(measure)) {
            System.out.printf(
                    Locale.ROOT,
                    "{\"peer\":\"Curator LeaderLatch\",\"store\":\"zookeeper\",\"measure\":\"%s\",\"rounds\":%d,"
                            + "\"p50_us\":%.1f,\"p99_us\":%.1f}%n",
                    measure,
                    rounds,
                    values[0],
                    values[values.length - 1]);
        }
    }
}
