// A page with the guide's registration sample, in Chromium, and the service worker of docs/webpush. FCM cannot be reached from
// here: firebase/app and firebase/messaging are stand-ins that hand out a made-up token; everything else is real.
// Usage: node webpush.mjs BASE GUIDE WORKER JWT. Prints "registered"; then reads one line, the message that FCM accepted,
// delivers it twice to the service worker and once to the page, and prints what is shown, as JSON.
import { chromium } from 'playwright-core';
import { createServer, request } from 'node:http';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import ts from 'typescript';

const [base, guide, worker, jwt] = process.argv.slice(2);
const text = readFileSync(guide, 'utf8');
const from = text.indexOf('### FCM Push Notification Registration');
const code = text.slice(from).match(/```typescript\n([\s\S]*?)```/)[1];
const sample = ts.transpileModule(code, { compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 } }).outputText;
const files = {
  '/': ['text/html', `<!doctype html><script type="importmap">{"imports":{"firebase/app":"/app.js","firebase/messaging":"/messaging.js"}}</script>
    <script type="module">import { registerPushNotifications } from '/sample.js'; window.register = registerPushNotifications;</script>`],
  '/app.js': ['text/javascript', 'export const initializeApp = (config) => ({ config });'],
  '/messaging.js': ['text/javascript', `export const getMessaging = (app) => ({ app });
    export const onMessage = (_, callback) => { window.foreground = callback; };
    export async function getToken(_, { vapidKey }) {
      if (!vapidKey) throw new Error('no vapidKey');
      await navigator.serviceWorker.register('/firebase-messaging-sw.js');
      await navigator.serviceWorker.ready;
      return 'browser-token';
    }`],
  '/sample.js': ['text/javascript', sample],
  '/firebase-messaging-sw.js': ['text/javascript', readFileSync(worker, 'utf8')],
};
const server = createServer((q, r) => {
  if (q.url.startsWith('/api/')) { // the guide's page and its backend share an origin
    const up = request(base + q.url, { method: q.method, headers: { ...q.headers, host: new URL(base).host, origin: base } }, (a) => { r.writeHead(a.statusCode, a.headers); a.pipe(r); });
    q.pipe(up);
    return;
  }
  const [type, body] = files[q.url] ?? [];
  r.writeHead(body ? 200 : 404, { 'content-type': type ?? 'text/plain' });
  r.end(body ?? '');
});
await new Promise((r) => server.listen(0, '127.0.0.1', r));
const origin = 'http://localhost:' + server.address().port;
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'] });
try {
  const context = await browser.newContext();
  await context.grantPermissions(['notifications'], { origin });
  const page = await context.newPage();
  const said = [];
  page.on('console', (m) => said.push(m.text()));
  await page.goto(origin);
  const cdp = await context.newCDPSession(page);
  let registration;
  cdp.on('ServiceWorker.workerRegistrationUpdated', ({ registrations }) => { registration = registrations.find((r) => !r.isDeleted)?.registrationId ?? registration; });
  await cdp.send('ServiceWorker.enable');
  await page.evaluate((jwt) => localStorage.setItem('token', jwt), jwt);
  await page.waitForFunction(() => window.register);
  await page.evaluate(() => window.register());
  if (!said.includes('Push notifications enabled')) throw new Error('the sample said ' + said);
  process.stdout.write('registered\n');
  const [line] = await new Promise((r) => createInterface(process.stdin).once('line', (l) => r([l])));
  const message = JSON.parse(line);
  // What FCM makes of a message for a browser.
  const payload = JSON.stringify({ notification: { ...message.notification, ...message.webpush.notification }, data: message.data, fcmOptions: message.webpush.fcm_options });
  for (let n = 0; !registration; n++) { if (n > 500) throw new Error('no service worker'); await new Promise((r) => setTimeout(r, 10)); }
  for (let n = 0; n < 2; n++) await cdp.send('ServiceWorker.deliverPushMessage', { origin, registrationId: registration, data: payload });
  const shown = await page.evaluate(async () => {
    const r = await navigator.serviceWorker.ready;
    for (let n = 0; n < 500 && (await r.getNotifications()).length === 0; n++) await new Promise((done) => setTimeout(done, 10));
    await new Promise((done) => setTimeout(done, 500)); // a second one would come now
    return (await r.getNotifications()).map((n) => ({ title: n.title, body: n.body, tag: n.tag, icon: new URL(n.icon).pathname, link: n.data.link }));
  });
  await page.evaluate((payload) => { // the guide's handler of messages while the page is open
    const { Notification: Real } = window;
    window.opened = [];
    window.Notification = class extends Real { constructor(title, options) { super(title, options); window.opened.push(title); } };
    window.foreground(JSON.parse(payload));
  }, payload);
  const foreground = await page.evaluate(() => window.opened);
  process.stdout.write(JSON.stringify({ shown, foreground }) + '\n');
} finally {
  await browser.close();
  server.close();
}
