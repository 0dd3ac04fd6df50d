# greenlane session 00000000000000ab serial 1
/ip firewall address-list
remove [find list="greenlane-new"]
add list="greenlane-new" address=198.51.100.0/24
add list="greenlane-new" address=203.0.113.9/32
add list="greenlane-new" address=203.0.113.128/25
remove [find list="greenlane"]
set [find list="greenlane-new"] list="greenlane"
/ipv6 firewall address-list
remove [find list="greenlane-new"]
add list="greenlane-new" address=2001:db8:1::/48
remove [find list="greenlane"]
set [find list="greenlane-new"] list="greenlane"
