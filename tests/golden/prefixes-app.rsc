# greenlane session 00000000000000ab serial 1
/ip firewall address-list
remove [find list="greenlane-new"]
add list="greenlane-new" address=192.0.2.1/32
add list="greenlane-new" address=198.51.100.7/32
add list="greenlane-new" address=203.0.113.9/32
remove [find list="greenlane"]
set [find list="greenlane-new"] list="greenlane"
