/**
 * The page offline: everything is cached at the first visit and used if the network fails.
 *
 * It also adds the headers that isolate the page, without which WebAssembly has no threads, for hosts that cannot set them.
 */

/** Files of the page and the model with the first digits of their SHA-256. The build fills them in. */
const FILES = {};
const CACHE = "gdposr-/* digest */";
const ISOLATION = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

/** The larger ONNX Runtime is of no use without WebGPU. */
const wanted = () => Object.keys(FILES).filter((path) => "gpu" in navigator || !path.includes(".jspi."));

self.addEventListener("install", (event) => {
  const keep = async () => {
    const cache = await caches.open(CACHE);
    await Promise.all(wanted().map((path) => cache.add(new Request(path, { cache: "no-cache" }))));
    await self.skipWaiting();
  };
  event.waitUntil(keep());
});

self.addEventListener("activate", (event) => {
  const start = async () => {
    const old = (await caches.keys()).filter((name) => name.startsWith("gdposr-") && name !== CACHE);
    await Promise.all(old.map((name) => caches.delete(name)));
    await self.clients.claim();
  };
  event.waitUntil(start());
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || new URL(request.url).origin !== self.location.origin) return;
  event.respondWith(answer(request));
});

async function answer(request) {
  let response;
  try {
    response = await fetch(request);
  } catch (error) {
    response = await caches.match(request, { ignoreSearch: true, cacheName: CACHE });
    if (!response) throw error;
  }
  if (response.status === 0 || response.redirected) return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATION)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
