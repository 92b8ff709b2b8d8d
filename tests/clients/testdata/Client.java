// SPDX-License-Identifier: Apache-2.0

import java.io.IOException;
import java.net.DatagramPacket;
import java.net.DatagramSocket;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;

/** Client PROTOCOL/ADDRESS:PORT...: asks each again and again, without a timeout; connects anew after an error. */
public class Client {
    static final byte[] HELLO = "hello\n".getBytes();

    static void say(String target, byte[] answer, int length, int local, InetSocketAddress peer) throws InterruptedException {
        System.out.println(target + " answer " + new String(answer, 0, length).strip() + " " + local + " "
                + peer.getAddress().getHostAddress() + ":" + peer.getPort());
        Thread.sleep(50);
    }

    static void askDatagrams(String target, InetSocketAddress service) throws IOException, InterruptedException {
        try (DatagramSocket socket = new DatagramSocket()) {
            socket.connect(service);
            while (true) {
                socket.send(new DatagramPacket(HELLO, HELLO.length));
                DatagramPacket answer = new DatagramPacket(new byte[100], 100);
                socket.receive(answer);
                say(target, answer.getData(), answer.getLength(), socket.getLocalPort(),
                        (InetSocketAddress) answer.getSocketAddress());
            }
        }
    }

    static void askStream(String target, InetSocketAddress service) throws IOException, InterruptedException {
        try (SocketChannel channel = SocketChannel.open(service)) {
            while (true) {
                channel.write(ByteBuffer.wrap(HELLO));
                ByteBuffer answer = ByteBuffer.allocate(100);
                if (channel.read(answer) < 0) throw new IOException("EOF");
                say(target, answer.array(), answer.position(), channel.socket().getLocalPort(),
                        (InetSocketAddress) channel.getRemoteAddress());
            }
        }
    }

    static void run(String target) {
        int slash = target.indexOf('/'), colon = target.lastIndexOf(':');
        InetSocketAddress service = new InetSocketAddress(target.substring(slash + 1, colon),
                Integer.parseInt(target.substring(colon + 1)));
        while (true) {
            try {
                try {
                    if (target.startsWith("udp")) askDatagrams(target, service);
                    else askStream(target, service);
                } catch (IOException e) {
                    System.out.println(target + " error " + e.getMessage());
                }
                Thread.sleep(50);
            } catch (InterruptedException e) {
                return;
            }
        }
    }

    public static void main(String[] targets) {
        for (String target : targets) new Thread(() -> run(target)).start();
    }
}
