-- Who is subscribed to a channel; those whose node has given no sign of life are dropped.
-- KEYS: presence
-- ARGV: dead before (ms)
-- Returns {client, user, client ...}.
local found, rows = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #rows, 2 do
  local seen_ms, user = string.match(rows[i + 1], '^(%d+)\n(.*)$')
  if tonumber(seen_ms) < tonumber(ARGV[1]) then
    redis.call('HDEL', KEYS[1], rows[i])
  else
    found[#found + 1], found[#found + 2] = rows[i], user
  end
end
return found
