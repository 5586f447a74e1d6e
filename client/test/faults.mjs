// What stands around a gate in the tests of resumption: an application that counts, and a proxy that breaks connections.
import { connect, createServer } from 'node:net';
import { once } from 'node:events';
import { WebSocketServer } from 'ws';

/** An application: it keeps what it gets, in order, and does with each message what the test says. */
export async function startApplication(t, onMessage = () => {}) {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1' });
  await once(server, 'listening');
  const app = { url: `ws://127.0.0.1:${server.address().port}`, got: [], sockets: [], closes: [] };
  server.on('connection', (socket) => {
    app.sockets.push(socket);
    socket.on('message', (data, binary) => {
      app.got.push(binary ? data : data.toString());
      onMessage(socket, data.toString());
    });
    socket.on('close', (code, reason) => app.closes.push([code, reason.toString()]));
    socket.on('error', () => {});
  });
  t.after(() => {
    for (const socket of server.clients) socket.terminate();
    server.close();
  });
  return app;
}

/** A proxy in front of a gate. What it does to a connection is the test's choice, at any time. */
export async function startProxy(t, target) {
  const [host, port] = target.split(':');
  const proxy = { links: [], requests: [], onLink: () => {} };
  const server = createServer((client) => {
    const gate = connect(Number(port), host);
    const link = {
      client, gate, up: 0, down: 0, request: '', upOpen: true, downOpen: true,
      /** Both ends see a reset. */
      reset() { client.resetAndDestroy(); gate.resetAndDestroy(); },
      /** Both ends see the end of the other. */
      end() { client.destroy(); gate.destroy(); },
      /** Neither end sees anything any more. */
      stall() { link.upOpen = link.downOpen = false; },
      /** The client sees a reset, and the gate nothing. */
      half() { link.stall(); client.resetAndDestroy(); },
    };
    proxy.links.push(link);
    client.on('data', (chunk) => {
      if (!link.request.includes('\r\n\r\n')) {
        link.request += chunk.toString('latin1');
        if (link.request.includes('\r\n\r\n')) proxy.requests.push(link.request);
      }
      link.up += chunk.length;
      if (link.upOpen) gate.write(chunk);
    });
    gate.on('data', (chunk) => {
      link.down += chunk.length;
      if (link.downOpen) client.write(chunk);
    });
    for (const [from, to] of [[client, gate], [gate, client]]) {
      from.on('error', () => {});
      from.on('close', () => { if (link.upOpen && link.downOpen) to.destroy(); });
    }
    proxy.onLink(link);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  proxy.address = `127.0.0.1:${server.address().port}`;
  proxy.last = () => proxy.links.at(-1);
  /** Sends a request to the gate, as a proxy does that takes its first for lost, and returns what comes back within a moment. */
  proxy.again = async (request) => {
    const socket = connect(Number(port), host);
    socket.on('error', () => {});
    let answer = '';
    socket.on('data', (chunk) => { answer += chunk.toString('latin1'); });
    socket.write(request, 'latin1');
    await new Promise((resolve) => { setTimeout(resolve, 150); socket.once('close', resolve); });
    socket.destroy();
    return answer;
  };
  t.after(() => {
    for (const { client, gate } of proxy.links) { client.destroy(); gate.destroy(); }
    server.close();
  });
  return proxy;
}
