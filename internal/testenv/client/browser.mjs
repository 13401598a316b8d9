// Drives the real socket.io-client in Chromium, from a page of the given origin, against a running server.
// Usage: node browser.mjs PAGE BASE USER TOKEN. Prints what the page saw, as JSON.
import { chromium } from 'playwright-core';

const [page, base, user, token] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'] });
try {
  const tab = await browser.newPage();
  await tab.goto(page);
  const seen = await tab.evaluate(async ([base, user, token]) => {
    const out = {};
    const once = (s, event) => new Promise((r) => s.once(event, r));
    for (const [name, options] of [['default', {}], ['websocket', { transports: ['websocket'] }]]) {
      const s = io(base + '/dashboard', { query: { userId: user, token }, forceNew: true, reconnection: false, ...options });
      const outcome = await Promise.race([once(s, 'connected').then(() => 'connected'), once(s, 'connect_error').then((e) => 'refused: ' + e.message)]);
      if (outcome === 'connected') {
        const ack = await s.emitWithAck('subscribe', { channels: ['a'] });
        if (name === 'default' && s.io.engine.transport.name !== 'websocket') await once(s.io.engine, 'upgrade');
        out[name] = `${ack.channels} by ${s.io.engine.transport.name}`;
      } else out[name] = outcome;
      s.disconnect();
    }
    // A bare WebSocket and REST from the same page.
    out.raw = await new Promise((r) => {
      const ws = new WebSocket(`${base.replace('http', 'ws')}/dashboard?userId=${user}&token=${token}`);
      ws.onmessage = (m) => { ws.close(); r(JSON.parse(m.data).event); };
      ws.onerror = () => r('refused');
    });
    out.rest = await fetch(base + '/api/notifications/unread-count', { headers: { authorization: 'Bearer ' + token } })
      .then((r) => String(r.status), () => 'refused');
    return out;
  }, [base, user, token]);
  process.stdout.write(JSON.stringify(seen) + '\n');
} finally {
  await browser.close();
}
