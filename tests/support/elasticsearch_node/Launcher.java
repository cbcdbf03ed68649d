import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.Comparator;
import java.util.Map;
import java.util.stream.Stream;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginsLoader;

/**
 * Runs an Elasticsearch node until its standard input says "stop" or ends.
 *
 * <p>The first argument is the node's directory; the others are its settings, such as http.port=9200. When standard
 * input ends without a word, whoever started the node is gone, and the directory is removed.
 */
public class Launcher {
    public static void main(String[] arguments) throws Exception {
        Path directory = Path.of(arguments[0]);
        Settings.Builder builder = Settings.builder();
        for (int i = 1; i < arguments.length; i++) {
            String[] setting = arguments[i].split("=", 2);
            builder.put(setting[0], setting[1]);
        }
        Settings settings = builder.build();
        // Read by the configuration of the logs.
        System.setProperty("es.logs.base_path", settings.get("path.logs"));
        System.setProperty("es.logs.cluster_name", settings.get("cluster.name"));
        LogConfigurator.configureESLogging();
        // Before the node starts, which takes a while in which the starter may go.
        Node[] node = new Node[1];
        Thread waiting = new Thread(() -> {
            boolean isOrphan = !isTold();
            try {
                synchronized (node) {
                    if (node[0] != null) node[0].close();
                }
                if (isOrphan) remove(directory);
            } catch (Throwable error) {
                error.printStackTrace();
            }
            // Not exit(): a hook or a thread that hangs must not keep the process.
            Runtime.getRuntime().halt(0);
        });
        // Of the threads only this one keeps the process.
        waiting.start();
        try {
            synchronized (node) {
                node[0] = newNode(settings);
                node[0].start();
            }
        } catch (Throwable error) {
            error.printStackTrace();
            Runtime.getRuntime().halt(1);
        }
    }

    private static Node newNode(Settings settings) throws Exception {
        Environment environment = new Environment(settings, Path.of(settings.get("path.home"), "config"));
        PluginsLoader plugins = PluginsLoader.createPluginsLoader(
            PluginsLoader.loadModulesBundles(environment.modulesDir()),
            PluginsLoader.loadPluginsBundles(environment.pluginsDir()),
            Map.of());
        return new Node(environment, plugins);
    }

    /** Wait for the end of standard input or a word there, and return whether there was one. */
    private static boolean isTold() {
        try {
            return System.in.read() >= 0;
        } catch (IOException error) {
            return false;
        }
    }

    private static void remove(Path directory) throws IOException {
        try (Stream<Path> paths = Files.walk(directory)) {
            for (Path path : (Iterable<Path>) paths.sorted(Comparator.reverseOrder())::iterator) {
                Files.deleteIfExists(path);
            }
        } catch (NoSuchFileException error) {
            // Somebody else removed it first.
        }
    }
}
