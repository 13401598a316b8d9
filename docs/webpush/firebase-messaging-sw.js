// Service worker that shows what Nexus pushes by FCM, each event once: a repeat has the same id, and so the same tag. Serve
// it from the page's own origin as /firebase-messaging-sw.js.
self.addEventListener('install', () => self.skipWaiting());
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));

self.addEventListener('push', (event) => {
  const { notification = {}, data = {}, fcmOptions = {} } = event.data?.json() ?? {};
  event.waitUntil(self.registration.showNotification(notification.title ?? 'New notification', {
    body: notification.body,
    icon: notification.icon ?? '/logo.png',
    badge: notification.badge,
    tag: data.nexus_id ?? data.id, // replaces what is shown already; nexus_id where the producer has an id of his own
    renotify: false,
    data: { link: fcmOptions.link ?? data.link ?? '/' },
  }));
});

self.addEventListener('notificationclick', (event) => {
  event.notification.close();
  event.waitUntil(self.clients.openWindow(event.notification.data.link));
});
