import java.io.File;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.recipes.leader.LeaderLatch;
import org.apache.curator.retry.RetryOneTime;

/** A candidate of Curator's LeaderLatch. It resigns when the file exists. Arguments: hosts, path, id, file. */
public class Candidate {
    public static void main(String[] args) throws Exception {
        CuratorFramework client =
                CuratorFrameworkFactory.newClient(args[0], 10_000, 5_000, new RetryOneTime(100));
        client.start();
        LeaderLatch latch = new LeaderLatch(client, args[1], args[2]);
        latch.start();
        System.out.println("campaigns");
        latch.await();
        System.out.println("leads");
        while (!new File(args[3]).exists()) {
            Thread.sleep(10);
        }
        latch.close();
        System.out.println("resigned");
        client.close();
    }
}
